#!/bin/busybox sh
# First process of Strata's default guest.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s
export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root USER=root TERM="${TERM:-linux}"
export PS1='strata:\w# '
hostname strata
cd /root

command=
read -r line < /proc/cmdline
for word in $line; do
    case $word in
    strata.cmd=*) command=$(echo "${word#strata.cmd=}" | base64 -d) ;;
    esac
done

read -r up idle < /proc/uptime
echo "strata: shell ready, $up s after the kernel started"

if [ -n "$command" ]; then
    sh -c "$command"
    echo "strata: exit status $?"
else
    # cttyhack makes the console the shell's controlling terminal, for ^C and jobs.
    setsid cttyhack sh
fi
poweroff -f
