#!/bin/busybox sh
# PID 1 of the guest. Kernel messages go to the first serial port; the second one takes commands, one a line:
#     ID BASE64-OF-A-SHELL-COMMAND
# and answers
#     BEGIN ID / the output in base64, 76 characters a line / END ID STATUS
# No byte of a command's output can imitate a frame, for a frame's words are not base64.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
ip link set lo up

# load NAME: insert a driver and what it needs, in the order noted when the image was made.
cat > /bin/load <<'EOF'
#!/bin/sh
[ -e "/lib/load/$1" ] || { echo "load: this guest has no module $1 (it may be built in)" >&2; exit 1; }
while read -r file; do
    name=${file%.ko}; name=$(echo "$name" | tr - _)
    [ -d "/sys/module/$name" ] || insmod "/lib/m/$file" || exit 1
done < "/lib/load/$1"
EOF
chmod 755 /bin/load

port=/dev/ttyS1
stty -F "$port" raw -echo 115200
exec 3<> "$port"
echo "READY $(cat /proc/uptime)" >&3
while read -r id command <&3; do
    echo "$command" | base64 -d > /tmp/command
    sh /tmp/command > /tmp/output 2>&1 < /dev/null
    status=$?
    { echo "BEGIN $id"; base64 /tmp/output; echo "END $id $status"; } >&3
done
poweroff -f
