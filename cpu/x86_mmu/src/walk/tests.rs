use guest_memory::{GuestMemory, MemoryMap, RamOffset, Region};
use x86_state::{cr0, cr4, efer};

use super::*;
use crate::entry;
use page_fault_code::{FETCH, PROTECTION, RESERVED, USER as BY_USER, WRITE};

const P: u64 = entry::PRESENT;
const W: u64 = entry::READ_WRITE;
const U: u64 = entry::USER;
const A: u64 = entry::ACCESSED;
const D: u64 = entry::DIRTY;
const PS: u64 = entry::PAGE_SIZE;
const G: u64 = entry::GLOBAL;
const NX: u64 = entry::NO_EXECUTE;

const READ: Access = Access { write: false, fetch: false, user: false, system: false, ac: false };
const STORE: Access = Access { write: true, ..READ };
const FETCHING: Access = Access { fetch: true, ..READ };
const USER_READ: Access = Access { user: true, ..READ };
const USER_STORE: Access = Access { user: true, ..STORE };
const USER_FETCH: Access = Access { user: true, ..FETCHING };

/// Tables at fixed places: level n at n * 0x1000.
fn table(level: u64) -> u64 {
    level * 0x1000
}

fn params(mode: PagingMode) -> PagingParams {
    let (cr4, efer) = match mode {
        PagingMode::None | PagingMode::Bits32 => (cr4::PSE, 0),
        PagingMode::Pae => (cr4::PAE, efer::NXE),
        PagingMode::Level4 => (cr4::PAE, efer::LMA | efer::NXE),
        PagingMode::Level5 => (cr4::PAE | cr4::LA57, efer::LMA | efer::NXE),
    };
    let top = match mode {
        PagingMode::Bits32 => 2,
        PagingMode::Level4 => 4,
        _ => 5,
    };
    PagingParams {
        cr0: if mode == PagingMode::None { 0 } else { cr0::PG | cr0::WP },
        cr3: table(top),
        cr4,
        efer,
        pdpte: [table(2) | P, 0, 0, 0],
        gigabyte_pages: true,
    }
}

/// Linear address 0x1234 of a walk in which every entry has index 0, but the
/// leaf has index 1.
const LINEAR: u64 = 0x1234;

/// Memory with a walk of `mode` to physical 0x9000, whose upper entries have
/// `upper` set and whose leaf has `leaf`.
fn world(mode: PagingMode, upper: u64, leaf: u64) -> GuestMemory {
    let memory = GuestMemory::flat(0x1_0000).unwrap();
    if mode == PagingMode::Bits32 {
        memory.write(RamOffset(table(2)), (table(1) | upper) as u32);
        memory.write(RamOffset(table(1) + 4), (0x9000 | leaf) as u32);
        return memory;
    }
    for level in 2..=5 {
        memory.write(RamOffset(table(level)), table(level - 1) | upper);
    }
    memory.write(RamOffset(table(1) + 8), 0x9000 | leaf);
    memory
}

fn leaf_of(memory: &GuestMemory, mode: PagingMode) -> u64 {
    if mode == PagingMode::Bits32 {
        memory.read::<u32>(RamOffset(table(1) + 4)).into()
    } else {
        memory.read(RamOffset(table(1) + 8))
    }
}

const PAGED: [PagingMode; 4] = [PagingMode::Bits32, PagingMode::Pae, PagingMode::Level4, PagingMode::Level5];

#[test]
fn modes_follow_the_control_registers() {
    for mode in PAGED.into_iter().chain([PagingMode::None]) {
        assert_eq!(params(mode).mode(), mode);
    }
}

#[test]
fn permissions_and_error_codes_of_every_mode() {
    let all = P | W | U;
    // (upper entries, leaf, access, error code or success)
    let cases = [
        (all, all, READ, None),
        (all, all, USER_STORE, None),
        (all, all, USER_FETCH, None),
        (all, 0, READ, Some(0)),
        (all, 0, USER_STORE, Some(WRITE | BY_USER)),
        (0, all, USER_READ, Some(BY_USER)),
        (all, P | W, USER_READ, Some(PROTECTION | BY_USER)),
        (P | W, all, USER_READ, Some(PROTECTION | BY_USER)),
        (all, P | U, USER_STORE, Some(PROTECTION | WRITE | BY_USER)),
        (P | U, all, USER_STORE, Some(PROTECTION | WRITE | BY_USER)),
        (all, P | U, STORE, Some(PROTECTION | WRITE)),
        (all, P | W, STORE, None),
        (all, P, USER_STORE, Some(PROTECTION | WRITE | BY_USER)),
    ];
    for mode in PAGED {
        for (upper, leaf, access, expected) in cases {
            let memory = world(mode, upper, leaf);
            // A PDPTE has no rights of its own; the others are in memory.
            let got = walk(&memory, &params(mode), LINEAR, access);
            let case = format!("{mode:?} upper {upper:#x} leaf {leaf:#x} {access:?}");
            match expected {
                None => assert_eq!(got.expect(&case).physical, 0x9234, "{case}"),
                Some(error_code) => {
                    assert_eq!(got, Err(PageFault { linear: LINEAR, error_code }), "{case}");
                    assert_eq!(leaf_of(&memory, mode) & (A | D), 0, "a fault sets no flag: {case}");
                }
            }
        }
    }
}

#[test]
fn supervisor_rights_under_wp_smep_and_smap() {
    let ac = Access { ac: true, ..READ };
    let system = Access { system: true, ..ac };
    // (CR0.WP, CR4 bits, leaf, access, allowed)
    let cases = [
        (false, 0, P | U, STORE, true),
        (true, 0, P | U, STORE, false),
        (true, 0, P | W | U, FETCHING, true),
        (true, cr4::SMEP, P | W | U, FETCHING, false),
        (true, cr4::SMEP, P | W, FETCHING, true),
        (true, cr4::SMEP, P | W | U, READ, true),
        (true, cr4::SMAP, P | W | U, READ, false),
        (true, cr4::SMAP, P | W | U, STORE, false),
        (true, cr4::SMAP, P | W | U, ac, true),
        (true, cr4::SMAP, P | W | U, system, false),
        (true, cr4::SMAP, P | W, system, true),
        (true, cr4::SMAP, P | W | U, FETCHING, true),
        (true, cr4::SMAP | cr4::SMEP, P | W | U, USER_READ, true),
    ];
    for mode in PAGED {
        for (wp, bits, leaf, access, allowed) in cases {
            let mut p = params(mode);
            p.cr4 |= bits;
            if !wp {
                p.cr0 &= !cr0::WP;
            }
            let got = walk(&world(mode, P | W | U, leaf), &p, LINEAR, access);
            assert_eq!(got.is_ok(), allowed, "{mode:?} WP {wp} CR4 {bits:#x} leaf {leaf:#x} {access:?}");
            if let Err(f) = got {
                let fetch = if access.fetch { FETCH } else { 0 };
                let write = if access.write { WRITE } else { 0 };
                assert_eq!(f.error_code, PROTECTION | fetch | write);
            }
        }
    }
}

#[test]
fn no_execute_and_the_fetch_bit() {
    let all = P | W | U;
    for mode in [PagingMode::Pae, PagingMode::Level4, PagingMode::Level5] {
        let on = params(mode);
        let off = PagingParams { efer: on.efer & !efer::NXE, ..on };
        for (upper, leaf) in [(all | NX, all), (all, all | NX)] {
            // In PAE paging only the page directory is an upper entry in memory.
            let memory = world(mode, upper, leaf);
            assert_eq!(walk(&memory, &on, LINEAR, FETCHING).unwrap_err().error_code, PROTECTION | FETCH);
            let data = walk(&memory, &on, LINEAR, READ).unwrap();
            assert!(!data.executable);
            // Without NXE the bit is reserved, and I/D is not reported.
            let got = walk(&memory, &off, LINEAR, FETCHING).unwrap_err();
            assert_eq!(got.error_code, PROTECTION | RESERVED);
        }
        assert!(walk(&world(mode, all, all), &on, LINEAR, USER_FETCH).unwrap().executable);
    }
    let smep = PagingParams { cr4: cr4::PSE | cr4::SMEP, ..params(PagingMode::Bits32) };
    let got = walk(&world(PagingMode::Bits32, all, 0), &smep, LINEAR, FETCHING).unwrap_err();
    assert_eq!(got.error_code, FETCH, "SMEP alone makes I/D reported");
}

#[test]
fn reserved_bits() {
    let all = P | W | U;
    let beyond = 1 << PhysicalBits::MAX;
    use PagingMode::{Level4, Level5, Pae};
    // (mode, upper, leaf, faults)
    let cases = [
        (Level4, all, all | beyond, true),
        (Level4, all | beyond, all, true),
        (Level4, all, all | 1 << 51, true),
        (Level4, all, all | 1 << 52, false),
        (Level4, all, all | 1 << 62, false),
        (Level5, all, all | beyond, true),
        (Pae, all, all | beyond, true),
        (Pae, all, all | 1 << 52, true),
        (Pae, all, all | 1 << 62, true),
        (Level4, all, all | PS, false),
        // A not-present entry has no reserved bits.
        (Level4, all, beyond, false),
    ];
    for (mode, upper, leaf, faults) in cases {
        let got = walk(&world(mode, upper, leaf), &params(mode), LINEAR, USER_READ);
        let reserved = got.is_err_and(|f| f.error_code == PROTECTION | RESERVED | BY_USER);
        assert_eq!(reserved, faults, "{mode:?} upper {upper:#x} leaf {leaf:#x}");
    }
}

#[test]
fn large_pages() {
    // (mode, level of the leaf, entry, linear, physical, page shift); None: reserved.
    let all = P | W | U | PS;
    use PagingMode::{Bits32, Level4, Level5, Pae};
    let cases = [
        (Bits32, 2, 0x0040_0000 | all, 0x12_3456, Some((0x52_3456, 22))),
        // PSE-36: bits 20:13 are address bits 39:32.
        (Bits32, 2, 0x0040_0000 | 0xff << 13 | all, 0x12_3456, Some((0xff_0052_3456, 22))),
        (Bits32, 2, 1 << 21 | all, 0x12_3456, None),
        (Pae, 2, 0x60_0000 | all, 0x12_3456, Some((0x72_3456, 21))),
        (Level4, 2, 0x60_0000 | all | 1 << 12, 0x12_3456, Some((0x72_3456, 21))),
        (Level4, 2, 0x60_0000 | all | 1 << 13, 0x12_3456, None),
        (Level4, 3, 0x4000_0000 | all, 0x1234_5678, Some((0x5234_5678, 30))),
        (Level4, 3, 0x4000_0000 | all | 1 << 29, 0x1234_5678, None),
        (Level5, 3, 0x4000_0000 | all, 0x1234_5678, Some((0x5234_5678, 30))),
        (Level4, 4, table(3) | all, 0x1234, None),
        (Level5, 5, table(4) | all, 0x1234, None),
    ];
    for (mode, level, value, linear, expected) in cases {
        let memory = world(mode, P | W | U, P | W | U);
        if mode == Bits32 {
            memory.write(RamOffset(table(level)), value as u32);
        } else {
            memory.write(RamOffset(table(level)), value);
        }
        let got = walk(&memory, &params(mode), linear, USER_STORE);
        let case = format!("{mode:?} level {level} {value:#x}");
        match expected {
            Some((physical, shift)) => {
                let t = got.expect(&case);
                assert_eq!((t.physical, t.page_shift), (physical, shift), "{case}");
                let after: u64 = memory.read(RamOffset(table(level)));
                assert_eq!(after & (A | D), A | D, "{case}");
            }
            None => {
                assert_eq!(got.unwrap_err().error_code, PROTECTION | RESERVED | WRITE | BY_USER, "{case}")
            }
        }
    }
    // Without the feature, or without CR4.PSE, the bit means something else.
    let memory = world(Level4, P | W | U, P | W | U);
    memory.write(RamOffset(table(3)), 0x4000_0000 | all);
    let without = PagingParams { gigabyte_pages: false, ..params(Level4) };
    assert_eq!(walk(&memory, &without, 0, READ).unwrap_err().error_code, PROTECTION | RESERVED);
    let memory = world(Bits32, all, P | W | U);
    let without = PagingParams { cr4: 0, ..params(Bits32) };
    assert_eq!(walk(&memory, &without, LINEAR, READ).unwrap().page_shift, 12);
}

#[test]
fn accessed_and_dirty_flags() {
    for mode in PAGED {
        let all = P | W | U | G;
        let memory = world(mode, all, all);
        let mut p = params(mode);
        let t = walk(&memory, &p, LINEAR, READ).unwrap();
        assert!(!t.writable && t.read_write && !t.global, "{mode:?}: clean, PGE off");
        assert_eq!(leaf_of(&memory, mode) & (A | D), A);
        let upper: u64 = memory.read(RamOffset(table(2)));
        assert_eq!(upper & (A | D), A, "{mode:?}: no dirty flag above the leaf");
        p.cr4 |= cr4::PGE;
        let t = walk(&memory, &p, LINEAR, STORE).unwrap();
        assert!(t.writable && t.global);
        assert_eq!(leaf_of(&memory, mode) & (A | D), A | D);
        assert!(walk(&memory, &p, LINEAR, READ).unwrap().writable, "{mode:?}: dirty now");
    }
}

#[test]
fn tables_outside_memory_and_in_read_only_memory() {
    let memory =
        GuestMemory::new(MemoryMap::new([Region::rom(0, 0x8000), Region::ram(0x8000, 0x8000)]).unwrap())
            .unwrap();
    for level in 2..=4u64 {
        memory.store(table(level), &(table(level - 1) | P | W | U).to_le_bytes()).unwrap();
    }
    memory.store(table(1) + 8, &(0x9000 | P | W | U).to_le_bytes()).unwrap();
    let p = params(PagingMode::Level4);
    assert_eq!(walk(&memory, &p, LINEAR, STORE).unwrap().physical, 0x9234);
    assert_eq!(leaf_of(&memory, PagingMode::Level4) & (A | D), 0, "flags of a ROM stay");
    // All ones is an entry with reserved bits set.
    let outside = PagingParams { cr3: 0x20_0000, ..p };
    assert_eq!(walk(&memory, &outside, LINEAR, READ).unwrap_err().error_code, PROTECTION | RESERVED);
    assert_eq!(inspect(&memory, &p, LINEAR), Some(0x9234));
    assert_eq!(inspect(&memory, &outside, LINEAR), None);
}

#[test]
fn concurrent_walks_set_flags_without_losing_a_change() {
    // A vCPU clears the accessed flag and flips a software bit while another walks.
    let memory = world(PagingMode::Level4, P | W | U, P | W | U);
    let p = params(PagingMode::Level4);
    std::thread::scope(|s| {
        s.spawn(|| {
            for _ in 0..20_000 {
                walk(&memory, &p, LINEAR, STORE).unwrap();
            }
        });
        s.spawn(|| {
            for n in 0..20_000u64 {
                let old = memory.update::<u64>(RamOffset(table(1) + 8), |e| (e & !(A | D)) ^ 1 << 9);
                assert_eq!(old >> 9 & 1, n & 1, "the walker keeps bit 9");
            }
        });
    });
}

#[test]
fn pdptes_are_checked_when_loaded() {
    let memory = GuestMemory::flat(0x2000).unwrap();
    let check = |value: u64, good: bool| {
        memory.write(RamOffset(0x1028), value);
        assert_eq!(load_pdptes(&memory, 0x1020 | 0x1f).is_ok(), good, "{value:#x}");
    };
    check(0x3000 | P, true);
    for bit in [1, 2, 5, 6, 7, 8, 40, 63] {
        check(0x3000 | P | 1 << bit, false);
        check(0x3000 | 1 << bit, true);
    }
    check(0x3000 | P, true);
    assert_eq!(load_pdptes(&memory, 0x1020).unwrap()[1] & !0xfff, 0x3000);
    assert_eq!(load_pdptes(&memory, 0x10_0000), Err(ReservedPdpte));
}

#[test]
fn without_paging_linear_is_physical() {
    let memory = GuestMemory::flat(0x1000).unwrap();
    let t = walk(&memory, &params(PagingMode::None), 0x1_2345_6789, STORE).unwrap();
    assert_eq!(t.physical, 0x2345_6789);
    assert!(t.writable && t.executable && t.readable);
}
