//! The page walk.

use guest_memory::GuestMemory;
use x86_state::{PhysicalBits, cr0, cr4, efer};

use crate::entry::{
    ABOVE_ADDRESS, ACCESSED, ADDRESS, DIRTY, Entry, GLOBAL, NO_EXECUTE, PAGE_SIZE, PRESENT, READ_WRITE, USER,
};
use crate::{Access, PageFault, PagingMode, PagingParams, Translation, page_fault_code};

/// Entries read on the way down, at most one for each of five levels.
struct Path {
    entries: [Option<Entry>; 5],
    len: usize,
    /// The AND of R/W and U/S, and the OR of XD, over all levels.
    rights: u64,
    physical: u64,
    page_shift: u8,
}

/// Why a walk ended without a page.
enum Miss {
    NotPresent,
    Reserved,
}

impl Path {
    fn new() -> Self {
        Path { entries: [None; 5], len: 0, rights: READ_WRITE | USER, physical: 0, page_shift: 12 }
    }

    /// Check presence and reserved bits and accumulate rights.
    fn take(&mut self, entry: Entry, reserved: u64) -> Result<(), Miss> {
        if !entry.has(PRESENT) {
            return Err(Miss::NotPresent);
        }
        if entry.value & reserved != 0 {
            return Err(Miss::Reserved);
        }
        self.rights &= entry.value | !(READ_WRITE | USER);
        self.rights |= entry.value & NO_EXECUTE;
        if let Some(slot) = self.entries.get_mut(self.len) {
            *slot = Some(entry);
            self.len += 1;
        }
        Ok(())
    }

    fn page(&mut self, frame: u64, linear: u64, shift: u8) {
        let within = (1u64 << shift) - 1;
        self.physical = frame & !within | linear & within;
        self.page_shift = shift;
    }

    fn leaf(&self) -> Option<&Entry> {
        self.entries[..self.len].last().and_then(Option::as_ref)
    }

    /// Set A in every entry and D in the leaf of a write. False: start again.
    fn mark(&self, memory: &GuestMemory, write: bool) -> bool {
        self.entries[..self.len].iter().flatten().enumerate().all(|(n, entry)| {
            let dirty = if write && n + 1 == self.len { DIRTY } else { 0 };
            entry.mark(memory, ACCESSED | dirty)
        })
    }

    /// Whether [`Path::mark`] has nothing to do.
    fn is_marked(&self, write: bool) -> bool {
        let accessed = self.entries[..self.len].iter().flatten().all(|e| e.has(ACCESSED));
        accessed && (!write || self.leaf().is_some_and(|e| e.has(DIRTY)))
    }
}

/// 32-bit paging (SDM volume 3, 5.3).
fn descend_32(path: &mut Path, memory: &GuestMemory, params: &PagingParams, linear: u64) -> Result<(), Miss> {
    let pde_at = params.cr3 & 0xffff_f000 | linear >> 20 & 0xffc;
    let pde = Entry::read(memory, pde_at, false);
    if pde.has(PAGE_SIZE) && params.cr4 & cr4::PSE != 0 {
        // PSE-36: bits 39:32 of the frame are bits 20:13 of the entry; bit 21 is
        // reserved with a MAXPHYADDR of 40.
        const { assert!(PhysicalBits::MAX == 40) };
        path.take(pde, 1 << 21)?;
        path.page(pde.value & 0xffc0_0000 | (pde.value >> 13 & 0xff) << 32, linear, 22);
        return Ok(());
    }
    path.take(pde, 0)?;
    let pte = Entry::read(memory, pde.value & 0xffff_f000 | linear >> 10 & 0xffc, false);
    path.take(pte, 0)?;
    path.page(pte.value & 0xffff_f000, linear, 12);
    Ok(())
}

/// The levels of 64-bit entries from `level` (5 is PML5, 2 the page directory)
/// down (SDM volume 3, 5.4 and 5.5).
fn descend_64(
    path: &mut Path,
    memory: &GuestMemory,
    params: &PagingParams,
    linear: u64,
    table: u64,
    level: u32,
) -> Result<(), Miss> {
    let pae = params.efer & efer::LMA == 0;
    let mut always_reserved = ABOVE_ADDRESS;
    if pae {
        always_reserved |= 0x7ff << 52;
    }
    if params.efer & efer::NXE == 0 {
        always_reserved |= NO_EXECUTE;
    }
    let mut table = table & ADDRESS;
    for level in (1..=level).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = Entry::read(memory, table | (linear >> shift & 0x1ff) << 3, true);
        let large = entry.has(PAGE_SIZE) && (level == 2 || level == 3 && params.gigabyte_pages);
        let mut reserved = always_reserved;
        if large {
            // Frame bits below the page size, except bit 12 (PAT).
            reserved |= ((1 << shift) - 1) & !0x1fff;
        } else if level > 1 && level != 2 {
            reserved |= PAGE_SIZE;
        }
        path.take(entry, reserved)?;
        if large || level == 1 {
            path.page(entry.value & ADDRESS, linear, shift as u8);
            break;
        }
        table = entry.value & ADDRESS;
    }
    Ok(())
}

/// Fill a new path, in place: it is large to move and this is done often.
fn descend(path: &mut Path, memory: &GuestMemory, params: &PagingParams, linear: u64) -> Result<(), Miss> {
    match params.mode() {
        PagingMode::None => {
            path.page(linear & 0xffff_ffff, linear, 12);
            Ok(())
        }
        PagingMode::Bits32 => descend_32(path, memory, params, linear & 0xffff_ffff),
        PagingMode::Pae => {
            let linear = linear & 0xffff_ffff;
            let pdpte = params.pdpte[(linear >> 30) as usize & 3];
            if pdpte & PRESENT == 0 {
                return Err(Miss::NotPresent);
            }
            descend_64(path, memory, params, linear, pdpte, 2)
        }
        PagingMode::Level4 => descend_64(path, memory, params, linear, params.cr3, 4),
        PagingMode::Level5 => descend_64(path, memory, params, linear, params.cr3, 5),
    }
}

/// What one privilege may do with a page (SDM volume 3, 5.6.1).
struct Rights {
    read: bool,
    write: bool,
    fetch: bool,
}

impl Rights {
    fn of(rights: u64, params: &PagingParams, access: Access) -> Rights {
        let user_page = rights & USER != 0;
        let read_write = rights & READ_WRITE != 0;
        let executable = rights & NO_EXECUTE == 0;
        if access.user {
            return Rights {
                read: user_page,
                write: user_page && read_write,
                fetch: user_page && executable,
            };
        }
        let smap = user_page && params.cr4 & cr4::SMAP != 0 && (access.system || !access.ac);
        let smep = user_page && params.cr4 & cr4::SMEP != 0;
        let write = read_write || params.cr0 & cr0::WP == 0;
        Rights { read: !smap, write: write && !smap, fetch: executable && !smep }
    }

    fn allow(&self, access: Access) -> bool {
        if access.fetch {
            self.fetch
        } else if access.write {
            self.write
        } else {
            self.read
        }
    }
}

fn fault(params: &PagingParams, linear: u64, access: Access, cause: u32) -> PageFault {
    let mut error_code = cause;
    if access.write {
        error_code |= page_fault_code::WRITE;
    }
    if access.user {
        error_code |= page_fault_code::USER;
    }
    let reports_fetch =
        params.cr4 & cr4::SMEP != 0 || params.cr4 & cr4::PAE != 0 && params.efer & efer::NXE != 0;
    if access.fetch && reports_fetch {
        error_code |= page_fault_code::FETCH;
    }
    PageFault { linear, error_code }
}

/// Translate `linear` for one access, setting accessed and dirty flags by locked
/// operations. Canonical form of 64-bit addresses is the caller's check; in the
/// 32-bit modes bits 63:32 are ignored.
///
/// Entries that lie outside memory read as all ones; flags of entries in
/// read-only memory stay as they are. A walk that faults sets no flag.
///
/// # Errors
/// The page fault to deliver, with CR2 and error code.
pub fn walk(
    memory: &GuestMemory,
    params: &PagingParams,
    linear: u64,
    access: Access,
) -> Result<Translation, PageFault> {
    if params.cr0 & cr0::PG == 0 {
        return Ok(Translation { physical: linear & 0xffff_ffff, ..UNPAGED });
    }
    loop {
        let mut path = Path::new();
        let translation = find(&mut path, memory, params, linear, access)?;
        if path.mark(memory, access.write) {
            return Ok(translation);
        }
    }
}

/// Translate `linear` if that needs no accessed or dirty flag to be set. `None`:
/// it does, or the access faults; [`walk`] says which.
pub fn walk_marked(
    memory: &GuestMemory,
    params: &PagingParams,
    linear: u64,
    access: Access,
) -> Option<Translation> {
    if params.cr0 & cr0::PG == 0 {
        return Some(Translation { physical: linear & 0xffff_ffff, ..UNPAGED });
    }
    let mut path = Path::new();
    let translation = find(&mut path, memory, params, linear, access).ok()?;
    path.is_marked(access.write).then_some(translation)
}

/// What everything may do without paging.
const UNPAGED: Translation = Translation {
    physical: 0,
    page_shift: 12,
    user: true,
    read_write: true,
    writable: true,
    executable: true,
    readable: true,
    global: false,
};

/// The translation for one access once the flags of its entries are set; `path`, a new one, receives the entries.
fn find(
    path: &mut Path,
    memory: &GuestMemory,
    params: &PagingParams,
    linear: u64,
    access: Access,
) -> Result<Translation, PageFault> {
    descend(path, memory, params, linear).map_err(|miss| {
        let cause = match miss {
            Miss::NotPresent => 0,
            Miss::Reserved => page_fault_code::PROTECTION | page_fault_code::RESERVED,
        };
        fault(params, linear, access, cause)
    })?;
    let rights = Rights::of(path.rights, params, access);
    if !rights.allow(access) {
        return Err(fault(params, linear, access, page_fault_code::PROTECTION));
    }
    let leaf = path.leaf().map_or(0, |e| e.value);
    Ok(Translation {
        physical: path.physical,
        page_shift: path.page_shift,
        user: path.rights & USER != 0,
        read_write: path.rights & READ_WRITE != 0,
        writable: rights.write && (access.write || leaf & DIRTY != 0),
        executable: rights.fetch,
        readable: rights.read,
        global: leaf & GLOBAL != 0 && params.cr4 & cr4::PGE != 0,
    })
}

/// Translate `linear` as a debugger does: no permission check, no flag set.
/// `None`: nothing is mapped there.
pub fn inspect(memory: &GuestMemory, params: &PagingParams, linear: u64) -> Option<u64> {
    let mut path = Path::new();
    descend(&mut path, memory, params, linear).ok().map(|()| path.physical)
}

/// A PDPTE to be loaded has a reserved bit set: MOV to CR raises #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReservedPdpte;

/// Load the four PDPTE registers of PAE paging from the table at CR3 (SDM
/// volume 3, 5.4.1).
///
/// # Errors
/// [`ReservedPdpte`] when a present entry has a reserved bit set.
pub fn load_pdptes(memory: &GuestMemory, cr3: u64) -> Result<[u64; 4], ReservedPdpte> {
    const RESERVED: u64 = 0x1e6 | !((1 << PhysicalBits::MAX) - 1);
    let mut pdptes = [0; 4];
    for (n, pdpte) in pdptes.iter_mut().enumerate() {
        *pdpte = Entry::read(memory, (cr3 & 0xffff_ffe0) + 8 * n as u64, true).value;
        if *pdpte & PRESENT != 0 && *pdpte & RESERVED != 0 {
            return Err(ReservedPdpte);
        }
    }
    Ok(pdptes)
}

#[cfg(test)]
mod tests;
