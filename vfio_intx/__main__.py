"""``python -m vfio_intx`` is the ``vfio-intx`` command."""

from vfio_intx.cli.main import console_entry

if __name__ == "__main__":
    console_entry()
