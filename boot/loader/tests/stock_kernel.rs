//! A distribution's kernel, named by STRATA_TEST_KERNEL.

mod images;

use images::Machine;
use loader::{ImageKind, Protocol, extract_vmlinux, load, sniff};

#[test]
#[ignore = "needs STRATA_TEST_KERNEL; cargo xtask test sets it"]
fn a_stock_kernel_loads_by_every_linux_protocol() {
    let path = std::env::var("STRATA_TEST_KERNEL").expect("STRATA_TEST_KERNEL names a vmlinuz");
    let kernel = std::fs::read(path).unwrap();
    assert_eq!(sniff(&kernel).unwrap(), ImageKind::BzImage);
    let vmlinux = extract_vmlinux(&kernel).unwrap();
    assert_eq!(&vmlinux[..5], b"\x7fELF\x02");
    for protocol in [Protocol::Auto, Protocol::Linux64, Protocol::Linux32, Protocol::Pvh] {
        let machine = Machine::new(512);
        let request = loader::BootRequest { protocol, ..machine.request(&kernel) };
        let state = load(&machine.memory, &request).unwrap();
        assert!(state.note.is_none(), "{:?}", state.note);
        let used = state.protocol;
        assert_eq!(used, if protocol == Protocol::Auto { Protocol::Uncompressed } else { protocol });
        assert_ne!(machine.read(state.cpu.rip, 16), [0; 16], "code at the entry of {used}");
    }
}
