//! The hardware-assist engine over /dev/kvm.
