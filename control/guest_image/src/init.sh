#!/bin/busybox sh
# First process of Strata's default guest.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mkdir -p /dev/pts
/bin/busybox mount -t devpts devpts /dev/pts
/bin/busybox --install -s
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root TERM="${TERM:-linux}"
export PS1='strata:\w# '
hostname strata
cd /root

# What poweroff, reboot and halt ask of the first process. Programs are told to end
# and get a second for it (the console's shell ends with its session); disks are left whole.
end() {
    trap '' USR1 USR2 TERM
    kill -TERM -1
    for tenth in 1 2 3 4 5 6 7 8 9 10; do
        left=
        for line in /proc/[0-9]*/cmdline; do
            # Kernel threads and the dead have none.
            [ "$line" != /proc/1/cmdline ] && [ -n "$(cat "$line" 2> /dev/null)" ] && left=1
        done
        [ -n "$left" ] || break
        usleep 100000
    done
    kill -KILL -1
    umount -a -r 2> /dev/null
    "$1" -f
}
# A halted machine could do nothing more but be ended from outside.
trap 'end poweroff' USR1 USR2
trap 'end reboot' TERM
# The end of the shell or the command. Of the greatest number, so that what that has
# asked for itself goes first.
trap 'poweroff -f' PWR

# Drivers that the kernel has as modules, in this order.
load() {
    for name; do
        insmod "/lib/strata/$name.ko" 2> /dev/null
    done
}

# The numbers of virtio devices (virtio 1.2, section 5; on PCI from 0x1040 on, beside it from 1 on).
devices=
for file in /sys/bus/pci/devices/*/device; do
    read -r vendor < "${file%/*}/vendor"
    read -r device < "$file"
    [ "$vendor" = 0x1af4 ] && devices="$devices $device"
done

read -r line < /proc/cmdline

# What a command may need before it starts.
mmio=
[ -e /sys/bus/acpi/devices/LNRO0005:00 ] && mmio=1
case $devices$mmio in ?*) load virtio_ring virtio ;; esac
case $devices in ?*) load virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci ;; esac
if [ -n "$mmio" ]; then
    load virtio_mmio
    for file in /sys/bus/virtio/devices/*/device; do
        read -r device < "$file"
        devices="$devices 0x10$(printf %02x $((device + 0x40)))"
    done
fi
case $devices in *0x1042*) load virtio_blk ;; esac
case $devices in *0x1041*) load failover net_failover virtio_net ;; esac
case $devices in *0x1043*) load virtio_console ;; esac
case $devices in *0x105a*)
    load fuse virtiofs
    strata-agent mount
    ;;
esac
case $devices in *0x105b*) load libnvdimm nd_btt nd_pmem nd_virtio virtio_pmem ;; esac
# The console that the kernel was told, now that its driver is there.
case $line in *console=hvc0*) [ -c /dev/hvc0 ] && exec < /dev/hvc0 > /dev/hvc0 2>&1 ;; esac
command=
for word in $line; do
    case $word in
    strata.cmd=*) command=$(echo "${word#strata.cmd=}" | base64 -d) ;;
    esac
done

read -r up idle < /proc/uptime
echo "strata: shell ready, $up s after the kernel started"

# What may come while it runs. What drivers say meanwhile would come into the middle of
# the shell's lines: it is in dmesg.
{
    read -r level rest < /proc/sys/kernel/printk
    echo 4 > /proc/sys/kernel/printk
    case $devices in *0x1053*)
        load vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport
        strata-agent serve &
        ;;
    esac
    case $devices in *0x1044*) load virtio-rng ;; esac
    case $devices in *0x1045*) load virtio_balloon ;; esac
    load button evdev
    echo "$level" > /proc/sys/kernel/printk
    # The power button, which `strata stop` presses, is an input device.
    {
        for name in /sys/class/input/event*/device/name; do
            read -r what < "$name"
            [ "$what" = "Power Button" ] || continue
            event=${name%/device/name}
            { head -c 1 "/dev/input/${event##*/}" > /dev/null && poweroff; } &
        done
    } 2> /dev/null
} &

# A shell handles signals while it waits for what runs in the background, where a job
# gets no interrupts. The second setsid, of what leads a session already, starts it
# otherwise: it forks and leaves.
if [ -n "$command" ]; then
    setsid setsid sh -c 'sh -c "$0"; echo "strata: exit status $?"; kill -PWR 1' "$command"
else
    # cttyhack makes the console the shell's controlling terminal, for ^C and jobs.
    setsid setsid cttyhack sh -c 'sh; kill -PWR 1'
fi
while :; do
    sleep 100000 &
    wait $!
done
