//! Memory and processor state that a random program starts from.

use x86_state::{CpuState, Segment, TableRegister, cr0, cr4, efer, rflags, xcr0};

use super::Setup;
use super::emit::Emitted;
use super::handlers::handlers;
use super::layout::{self, HIGH, LOW};
use crate::random::{self, Random};

/// The page behind the code is not mapped.
const CODE_END: u64 = layout::CODE + layout::CODE_LEN as u64;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const G: u64 = 1 << 8;

/// All of RAM.
pub fn memory(setup: &Setup, code: &Emitted) -> Vec<u8> {
    let mut m = Image(vec![0; layout::RAM]);
    m.system_tables();
    m.page_tables(setup);
    m.bytes(layout::HANDLERS, &handlers().bytes);
    // Who runs past the code raises #UD.
    m.bytes(layout::CODE, &[0x06; layout::CODE_LEN]);
    m.bytes(layout::CODE, &code.bytes);
    m.bytes(layout::LENGTHS, &code.lengths);
    let mut r = Random(setup.seed);
    for at in (layout::DATA..layout::DATA + layout::DATA_LEN).step_by(8) {
        m.put(at, r.next());
    }
    for frame in 0..layout::FRAME_COUNT {
        let at = layout::FRAMES + frame * 0x1000;
        for word in (at..at + 0x1000).step_by(8) {
            m.put(word, r.next());
        }
        m.bytes(at, &frame_function(frame));
    }
    m.put(layout::SYSTEM + layout::system::FUEL, setup.fuel);
    m.put(layout::SYSTEM + layout::system::RECOVER, handlers().end);
    m.0
}

/// A function at the start of a frame: MOV R8D, what; LEA RAX,[RAX+what]; RET.
fn frame_function(frame: u64) -> Vec<u8> {
    let mut code = vec![0x41, 0xb8];
    code.extend((0x1000 + frame as u32).to_le_bytes());
    code.extend([0x48, 0x8d, 0x40, 1 << (frame & 3)]);
    code.push(0xc3);
    code
}

struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: u64, v: u64) {
        self.bytes(at, &v.to_le_bytes());
    }

    fn bytes(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn system_tables(&mut self) {
        let descriptors = [
            0,
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
        ];
        for (i, d) in descriptors.into_iter().enumerate() {
            self.put(layout::GDT + i as u64 * 8, d);
        }
        for (v, handler) in handlers().vectors.into_iter().enumerate() {
            // The user may call 3, 4 and what is not an exception.
            let dpl = if matches!(v, 3 | 4 | 32..) { 0x6000 } else { 0 };
            let stack = if v == 2 { 2 } else { u64::from(v < 32) };
            let low = handler & 0xffff | layout::KERNEL_CS << 16 | stack << 32 | (0x8e00 | dpl) << 32;
            let at = layout::IDT + v as u64 * 16;
            self.put(at, low | (handler >> 16 & 0xffff) << 48);
            self.put(at + 8, handler >> 32);
        }
        for (offset, stack) in [
            (4, layout::ENTRY_STACK_TOP - 0x800),
            (0x24, layout::FAULT_STACK_TOP),
            (0x2c, layout::NMI_STACK_TOP),
        ] {
            self.put(layout::TSS + offset, HIGH + stack);
        }
    }

    fn page_tables(&mut self, setup: &Setup) {
        let global = if setup.global { G } else { 0 };
        let table = |n: u64| layout::TABLES + n * 0x1000;
        let to_table = P | W | U | A | D;
        let entry = |at: u64, index: u64| at + index * 8;
        // Two address spaces that differ in the lower half's windows.
        for (root, pointers, directory, windows) in [
            (layout::ROOTS[0], table(2), table(3), layout::WINDOW_TABLES[0]),
            (layout::ROOTS[1], table(0xc), table(0xd), layout::WINDOW_TABLES[2]),
        ] {
            self.put(entry(root, 0), pointers | to_table);
            self.put(entry(root, 511), table(4) | to_table);
            self.put(entry(pointers, 0), directory | to_table);
            self.put(entry(directory, LOW >> 21), layout::LOW_TABLE | to_table);
            self.put(entry(directory, (LOW >> 21) + 1), windows | to_table);
            self.put(entry(directory, (LOW >> 21) + 2), P | W | A | D | LARGE);
        }
        let high = table(5);
        self.put(entry(table(4), 510), high | to_table);
        self.put(entry(high, 0), layout::HIGH_TABLE | to_table);
        self.put(entry(high, 1), layout::WINDOW_TABLES[1] | to_table);
        self.put(entry(high, 2), P | W | A | D | LARGE | global);
        for page in 1..layout::RAM as u64 >> 12 {
            let at = page << 12;
            // Nothing that runs past the data's end reaches tables.
            let guard = at == CODE_END || (layout::FRAMES..layout::TABLES).contains(&at);
            if !guard {
                self.put(entry(layout::HIGH_TABLE, page), at | P | W | A | D | global);
            }
            let user = match at {
                layout::VARIABLES..layout::LOG => P | W | U | A | D,
                0x3_0000..CODE_END => P | W | U | A | D,
                layout::DATA..layout::FRAMES => data_page(page & 15),
                _ => continue,
            };
            self.put(entry(layout::LOW_TABLE, page), at | user);
        }
        // Some of the supervisor's data pages are special too.
        for page in [3, 9] {
            let at = layout::DATA + page * 0x1000;
            self.put(entry(layout::HIGH_TABLE, at >> 12), at | A | layout::LAZY);
        }
        for (n, windows) in layout::WINDOW_TABLES.into_iter().enumerate() {
            for w in 0..layout::WINDOW_COUNT {
                let frame = layout::FRAMES + (w * 3 + n as u64) % layout::FRAME_COUNT * 0x1000;
                self.put(entry(windows, w), frame | P | W | U);
            }
        }
    }
}

/// Rights of the user's data pages, by number.
fn data_page(n: u64) -> u64 {
    match n {
        2 | 11 => layout::LAZY | U,
        5 => layout::LAZY | P | U | A,
        7 => P | U | A,
        8 => 0,
        12 => P | W | A | D,
        13 => P | W | U,
        14 => P | W | U | A,
        _ => P | W | U | A | D,
    }
}

/// Whether a program starts with null selectors in ES, DS, FS and GS, as kernels
/// of 64 bits run. With ring 0's instead, which SYSRET keeps, an interrupt in ring 3
/// shows: its IRET makes them null.
pub fn has_null_data_segments(setup: &Setup) -> bool {
    setup.seed & 1 == 0
}

/// The processor at the program's first instruction, in the supervisor.
pub fn state(setup: &Setup, start: u64, reset: CpuState) -> CpuState {
    let mut r = Random(setup.seed ^ 0x5eed);
    let mut s = reset;
    let data = Segment { selector: layout::KERNEL_SS as u16, base: 0, limit: u32::MAX, access: 0xc093 };
    s.segments = [data; 6];
    if has_null_data_segments(setup) {
        for n in [0, 3, 4, 5] {
            s.segments[n] = Segment { selector: 0, access: 0x1_c093, ..data };
        }
    }
    s.segments[1] = Segment { selector: layout::KERNEL_CS as u16, access: 0xa09b, ..data };
    s.segments[4].base = LOW + layout::DATA + 0x100;
    s.gdtr = TableRegister { base: HIGH + layout::GDT, limit: 0x37 };
    s.idtr = TableRegister { base: HIGH + layout::IDT, limit: 0xfff };
    s.tr = Segment { selector: 0x40, base: HIGH + layout::TSS, limit: 0x67, access: 0x8b };
    s.cr0 = cr0::PG | cr0::WP | cr0::PE | cr0::ET | cr0::NE | cr0::MP | cr0::AM;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE | cr4::PAE | setup.cr4;
    s.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    s.cr3 = layout::ROOTS[0];
    s.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
    s.msrs.star = layout::KERNEL_CS << 32 | 0x20 << 48;
    s.msrs.lstar = handlers().syscall;
    s.msrs.sfmask = setup.syscall_mask;
    s.msrs.kernel_gs_base = HIGH + layout::DATA + 0x4000;
    s.rip = start;
    s.rflags = rflags::FIXED | r.next() & rflags::STATUS;
    for g in &mut s.gpr {
        *g = r.number(&layout::LOW_DATA);
    }
    s.gpr[4] = HIGH + layout::KERNEL_STACK_TOP;
    random::fpu(&mut r, &layout::LOW_DATA, &mut s);
    s
}
