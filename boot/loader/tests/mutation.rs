//! Random damage to good images never panics and never touches what is not RAM.

mod images;

use std::sync::OnceLock;

use images::Machine;
use loader::{BootRequest, Protocol, load};
use proptest::prelude::*;

fn image(index: usize) -> &'static [u8] {
    static IMAGES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let images = IMAGES.get_or_init(|| {
        vec![
            images::linux(),
            images::elf(true, Some(0x100_0002), 0x1000),
            images::elf(true, None, 0x1000),
            images::elf(false, Some(0x100_0002), 0x1000),
            images::multiboot_flat(),
            images::multiboot_elf(false),
            images::multiboot_elf(true),
            images::firmware(),
        ]
    });
    &images[index % images.len()]
}

/// Headers are where damage matters: most changes go there, with values that
/// are edges of something.
fn change() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let value = prop_oneof![
        any::<u8>().prop_map(|v| vec![v]),
        any::<u32>().prop_map(|v| v.to_le_bytes().to_vec()),
        prop_oneof![
            Just(0u64),
            Just(u64::MAX),
            Just(1 << 63),
            Just(0xffff_ffff),
            Just(0xffff_f000),
            any::<u64>()
        ]
        .prop_map(|v| v.to_le_bytes().to_vec()),
    ];
    let place =
        prop_oneof![3 => 0usize..0x100, 3 => 0x1f0usize..0x270, 1 => 0x400usize..0x820, 1 => any::<usize>()];
    (place, value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images(
        which in 0usize..8,
        changes in prop::collection::vec(change(), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        protocol in prop::sample::select(vec![
            Protocol::Auto, Protocol::Auto, Protocol::Uncompressed, Protocol::Linux64,
            Protocol::Linux32, Protocol::Pvh, Protocol::Multiboot, Protocol::Firmware,
        ]),
    ) {
        let mut file = image(which).to_vec();
        for (at, value) in changes {
            let at = at % file.len();
            let n = value.len().min(file.len() - at);
            file[at..at + n].copy_from_slice(&value[..n]);
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let machine = Machine::new(32);
        let initrd = [3u8; 3000];
        let request = BootRequest { initrd: Some(&initrd), protocol, ..machine.request(&file) };
        if let Ok(state) = load(&machine.memory, &request) {
            for l in state.loaded {
                prop_assert!(l.address.checked_add(l.size).is_some_and(|end| end <= 1 << 32), "{l:x?}");
            }
        }
    }
}
