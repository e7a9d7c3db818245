#!/bin/busybox sh
# The guest's first process: loads modules, then runs the scripts the host sends over the second serial port.
# The first serial port is the console; nothing but this protocol ever reaches the second (see agent.rs).
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mkdir -p /mnt
while read -r module; do
    insmod "/modules/$module.ko" || echo "guest: cannot load $module"
done </modules/order
# The kernel hands "disks=" of its command line to us as a variable.
for letter in a b c d e f; do
    [ "${disks:-0}" = 0 ] && break
    until [ -b "/dev/vd$letter" ]; do sleep 0.1; done
    disks=$((disks - 1))
done
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
echo "@@ready"
while :; do
    : >/tmp/script
    while IFS= read -r line && [ "$line" != "@@run" ]; do
        printf '%s\n' "$line" >>/tmp/script
    done
    /usr/bin/dash /tmp/script </dev/null
    status=$?
    echo
    echo "@@exit $status"
done
