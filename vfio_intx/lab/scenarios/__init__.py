"""What can be seen in the lab, one module a scenario; ``vfio-intx lab list`` shows them.

A scenario's module has ``SPEC`` (a LabSpec), ``inside(context) -> dict`` (runs in L1; the dict is the JSON result), and
may have ``outside(results_dir)``, a context manager that is open on the machine while L1 runs, and ``DEADLINE_S``. The
first line of its docstring is what ``lab list`` shows.
"""
