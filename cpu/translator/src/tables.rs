//! Address tables: for each page of a 48-bit linear space, what to add to a
//! guest address to reach guest RAM in this process; zero where there is no
//! direct way. A translation look-aside buffer that never evicts.
// UNSAFE: maps the tables and stores entries by checked index.
#![allow(unsafe_code, reason = "the home of the address tables' mappings")]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};

use crate::blocks::AddressMap;
use crate::layout::{GUARD, GUARDED, NEAR_PAGE, REGION, State};

/// Pages in a 48-bit space.
const PAGES: u64 = 1 << 36;
const TABLE_BYTES: usize = PAGES as usize * 8;
/// Entries remembered one by one; beyond this a flush drops whole tables.
const FILLED_CAP: usize = 1 << 16;
/// Regions of 2 MiB of linear space, a page of 4 KiB of each table, that a view may have
/// touched before it starts again with empty tables: at least this many, and as many as
/// the guest's RAM has MiB, so that twice the RAM can be entered. A guest may map one page
/// at every address there is; without an end its tables would be 512 GiB each.
const REGIONS_CAP: usize = 1 << 12;
/// Store entries of pages of RAM beyond each page's first, before a view starts again.
const FURTHER_CAP: usize = 1 << 16;
/// Entries of a region, as a binary logarithm: a page of a table.
const REGION_SHIFT: u32 = 9;

/// What [`REGIONS_CAP`] comes to with so many bytes of RAM.
pub(crate) fn regions_cap(ram: u64) -> usize {
    usize::try_from(ram >> 20).unwrap_or(usize::MAX).max(REGIONS_CAP)
}

/// The shared state's memory: one file, mapped for the engine and below every
/// store table.
pub(crate) struct StateMemory {
    file: OwnedFd,
    base: NonNull<State>,
}

// SAFETY: the mapping is owned; fields other than atomics are touched only by
// the vCPU's thread (through `&mut` access to the engine or translated code).
unsafe impl Send for StateMemory {}
// SAFETY: as above; `&StateMemory` gives out only the atomic token.
unsafe impl Sync for StateMemory {}

const STATE_BYTES: usize = REGION - GUARD;

impl StateMemory {
    pub fn new() -> rustix::io::Result<Self> {
        let file = memfd_create("strata-vcpu", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, STATE_BYTES as u64)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let p = unsafe {
            mmap(
                std::ptr::null_mut(),
                STATE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        Ok(StateMemory { file, base: NonNull::new(p.cast()).expect("mmap never returns null on success") })
    }

    pub fn pointer(&self) -> *mut State {
        self.base.as_ptr()
    }

    /// Ask translated code to leave at the next block, and when it sets IF.
    pub fn want_attention(&self) {
        // SAFETY: the mapping lives as long as self; the fields are atomic.
        let (pending, token) =
            unsafe { (&(*self.base.as_ptr()).system.pending, &(*self.base.as_ptr()).token) };
        pending.store(1, Ordering::SeqCst);
        token.store(0, Ordering::SeqCst);
    }

    /// The state, for the vCPU's own thread.
    pub fn get(&mut self) -> &mut State {
        // SAFETY: the mapping is valid, zero is a valid State, and `&mut self`
        // excludes other references on this thread; translated code is not running.
        unsafe { self.base.as_mut() }
    }
}

impl Drop for StateMemory {
    fn drop(&mut self) {
        // SAFETY: nothing uses the mapping once its owner is dropped.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), STATE_BYTES) };
    }
}

/// One reserved table.
struct Table {
    mapping: *mut u8,
    bytes: usize,
    entries: *mut AtomicU64,
}

// SAFETY: the mapping is owned and its entries are atomics.
unsafe impl Send for Table {}

/// What lies just below a table.
#[derive(Clone, Copy)]
enum Below<'a> {
    Nothing,
    /// The first page of the state.
    Near(&'a StateMemory),
    /// All of the state, and guard pages.
    All(&'a StateMemory),
}

impl Below<'_> {
    fn bytes(self) -> usize {
        match self {
            Below::Nothing => 0,
            Below::Near(_) => NEAR_PAGE,
            Below::All(_) => REGION,
        }
    }
}

impl Table {
    fn new(below: Below<'_>) -> rustix::io::Result<Self> {
        let lead = below.bytes();
        let bytes = TABLE_BYTES + lead;
        // SAFETY: fresh mapping.
        let mapping = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?
        .cast::<u8>();
        // SAFETY: `lead` bytes lie within the mapping.
        let t = Table { mapping, bytes, entries: unsafe { mapping.add(lead) }.cast() };
        // Table pages are touched sparsely: huge pages would waste memory.
        // SAFETY: the range is this mapping.
        let _ = unsafe { madvise(mapping.cast(), bytes, Advice::LinuxNoHugepage) };
        let (state, len) = match below {
            Below::Nothing => return Ok(t),
            Below::Near(s) => (s, NEAR_PAGE),
            Below::All(s) => (s, STATE_BYTES),
        };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: replaces the first pages of the mapping just made.
        unsafe { mmap(mapping.cast(), len, access, flags, state.file.as_fd(), 0) }?;
        if let Below::All(_) = below {
            // SAFETY: the pages lie in this mapping, just below the entries.
            unsafe { mprotect(mapping.add(REGION - GUARDED).cast(), GUARDED, MprotectFlags::empty()) }?;
        }
        Ok(t)
    }

    fn address(&self) -> u64 {
        self.entries as u64
    }

    fn set(&self, index: u64, value: u64) {
        debug_assert!(index < PAGES);
        // SAFETY: the index is masked to the table's extent.
        unsafe { &*self.entries.add((index & (PAGES - 1)) as usize) }.store(value, Ordering::Relaxed);
    }

    fn get(&self, index: u64) -> u64 {
        // SAFETY: the index is masked to the table's extent.
        unsafe { &*self.entries.add((index & (PAGES - 1)) as usize) }.load(Ordering::Relaxed)
    }

    /// Empty an entry without touching the page of one that is empty already.
    fn clear(&self, index: u64) {
        // SAFETY: the index is masked to the table's extent.
        let entry = unsafe { &*self.entries.add((index & (PAGES - 1)) as usize) };
        if entry.load(Ordering::Relaxed) != 0 {
            entry.store(0, Ordering::Relaxed);
        }
    }

    fn drop_all(&self) {
        // SAFETY: the range is this table; its pages read as zero afterwards.
        let _ = unsafe { madvise(self.entries.cast(), TABLE_BYTES, Advice::LinuxDontNeed) };
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: nothing points into the mapping once its owner is dropped.
        let _ = unsafe { munmap(self.mapping.cast(), self.bytes) };
    }
}

/// Views one vCPU may have at once: one a user context, two of the supervisor's.
const VIEWS: usize = crate::spaces::CONTEXTS + 2;

/// Whether `vcpus` vCPUs' tables fit in the address space and limits of this
/// process, all views of each in use. Reserves and releases them.
pub(crate) fn check_reservation(vcpus: usize) -> rustix::io::Result<()> {
    let tables = vcpus.saturating_mul(VIEWS * 2);
    (0..tables).map(|_| Table::new(Below::Nothing)).collect::<rustix::io::Result<Vec<_>>>().map(drop)
}

/// Index of a linear address's page.
fn index_of(linear: u64) -> u64 {
    (linear >> 12) & (PAGES - 1)
}

/// The region of the entry at `index`.
fn region_of(index: u64) -> u32 {
    (index >> REGION_SHIFT) as u32
}

/// Linear page number whose entry is at `index`, sign-extended.
#[cfg(test)]
fn linear_of(index: u64) -> u64 {
    ((index << 28) as i64 >> 16) as u64
}

/// A page to enter into a view.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fill {
    /// Linear address within the page.
    pub linear: u64,
    /// Host address of the page.
    pub host: u64,
    /// Its number in the backing.
    pub page: u32,
    /// It outlives a change of address space.
    pub global: bool,
    /// Binary logarithm of the size of the guest's page.
    pub page_shift: u8,
    /// Stores may go there directly.
    pub store: bool,
}

/// A load table and a store table that go together: what one address space may
/// do at one privilege.
pub(crate) struct View {
    load: Table,
    store: Table,
    /// What may be filled of global pages and of others.
    global: Filled,
    local: Filled,
    overflow: bool,
    /// Larger pages that have entries: size as a binary logarithm, page number.
    large: AddressMap<(u8, u64), ()>,
    /// The sizes among them.
    large_sizes: Vec<u8>,
    /// The regions whose entries were looked at or filled since the tables were made: at
    /// most so many have pages of the host's, which flushes do not give back.
    touched: AddressMap<u32, ()>,
    regions_cap: usize,
}

/// Entries of a view's tables.
#[derive(Default)]
struct Filled {
    /// Indices that may be filled.
    list: Vec<u64>,
    /// The store entry of each page of the RAM backing that has one, and further ones
    /// of pages that are mapped more than once.
    by_page: AddressMap<u32, u64>,
    further: BTreeSet<(u32, u64)>,
}

impl Filled {
    fn add_store(&mut self, page: u32, index: u64) {
        let first = *self.by_page.entry(page).or_insert(index);
        if first != index {
            self.further.insert((page, index));
        }
    }

    /// The store entries of a page, which it has no more.
    fn take_stores(&mut self, page: u32) -> impl Iterator<Item = u64> + use<> {
        let first = self.by_page.remove(&page);
        let mut further = Vec::new();
        if first.is_some() {
            let of_page = self.further.range((page, 0)..=(page, u64::MAX));
            further.extend(of_page.map(|(_, index)| *index));
            further.iter().for_each(|index| _ = self.further.remove(&(page, *index)));
        }
        first.into_iter().chain(further)
    }

    /// Empty these entries of both tables.
    fn empty(&mut self, load: &Table, store: &Table) {
        for index in self.list.drain(..) {
            load.set(index, 0);
            store.set(index, 0);
        }
        self.by_page.clear();
        self.further.clear();
    }
}

impl View {
    /// Empty tables above the state, for at most so many regions: see [`regions_cap`].
    pub fn new(state: &StateMemory, regions_cap: usize) -> rustix::io::Result<Self> {
        Ok(View {
            load: Table::new(Below::Near(state))?,
            store: Table::new(Below::All(state))?,
            global: Filled::default(),
            local: Filled::default(),
            overflow: false,
            large: AddressMap::default(),
            large_sizes: Vec::new(),
            touched: AddressMap::default(),
            regions_cap,
        })
    }

    /// An access to `linear` missed, which may have made the host give its entries pages.
    /// False: the view has had all it may have, and must be [renewed](View::renew).
    pub fn touch(&mut self, linear: u64) -> bool {
        let region = region_of(index_of(linear));
        if self.touched.len() >= self.regions_cap && !self.touched.contains_key(&region) {
            return false;
        }
        self.touched.insert(region, ());
        self.global.further.len() + self.local.further.len() < FURTHER_CAP
    }

    /// Start again with empty tables, at other addresses: pages of the host's page tables
    /// go only with the mapping.
    pub fn renew(&mut self, state: &StateMemory) {
        match View::new(state, self.regions_cap) {
            Ok(empty) => *self = empty,
            Err(_) => {
                // No room for two at once: give back what can be without.
                self.drop_all();
                self.touched.clear();
            }
        }
    }

    /// Table addresses: load, store.
    pub fn addresses(&self) -> (u64, u64) {
        (self.load.address(), self.store.address())
    }

    /// Enter a page that was [touched](View::touch): loads, and stores too if `store`.
    pub fn fill(&mut self, f: Fill) {
        let index = index_of(f.linear);
        debug_assert!(self.touched.contains_key(&region_of(index)), "it was missed");
        let value = f.host.wrapping_sub(f.linear & !0xfff);
        let filled = if f.global { &mut self.global } else { &mut self.local };
        self.load.set(index, value);
        if f.store {
            self.store.set(index, value);
            filled.add_store(f.page, index);
        }
        if filled.list.len() < FILLED_CAP {
            filled.list.push(index)
        } else {
            self.overflow = true
        }
        if f.page_shift > 12
            && self.large.insert((f.page_shift, f.linear >> f.page_shift), ()).is_none()
            && !self.large_sizes.contains(&f.page_shift)
        {
            self.large_sizes.push(f.page_shift);
        }
    }

    /// The load entry of a linear address's page.
    pub fn load_entry(&self, linear: u64) -> u64 {
        self.load.get(index_of(linear))
    }

    fn clear(&self, index: u64) {
        self.load.clear(index);
        self.store.clear(index);
    }

    /// Drop everything, or everything that is not global.
    pub fn flush(&mut self, globals: bool) {
        if self.overflow {
            self.drop_all();
            return;
        }
        self.local.empty(&self.load, &self.store);
        if globals {
            self.global.empty(&self.load, &self.store);
            self.large.clear();
        }
    }

    fn drop_all(&mut self) {
        self.load.drop_all();
        self.store.drop_all();
        self.global = Filled::default();
        self.local = Filled::default();
        self.large.clear();
        self.overflow = false;
    }

    /// Drop the entries of `linear`'s page, all of them if it is a large one.
    pub fn flush_page(&mut self, linear: u64) {
        // Looking at an entry may make the host give it a page.
        let index = index_of(linear);
        if self.touched.contains_key(&region_of(index)) {
            self.clear(index);
        }
        for shift in &self.large_sizes {
            if self.large.remove(&(*shift, linear >> shift)).is_none() {
                continue;
            }
            let lists = [&self.global.list, &self.local.list];
            let (first, count) = (index_of(linear >> shift << shift), 1 << (shift - 12));
            // The lists lack what was filled after an overflow.
            if self.overflow || count <= lists.iter().map(|l| l.len() as u64).sum() {
                (first..first + count).for_each(|i| self.clear(i));
            } else {
                let near = |i: &&u64| (first..first + count).contains(*i);
                lists.into_iter().flatten().filter(near).for_each(|i| self.clear(*i));
            }
        }
    }

    /// The same in another context than the current one, where only a global page goes.
    /// Users' pages are global as good as never.
    pub fn flush_global_page(&mut self, linear: u64) {
        if !self.global.list.is_empty() {
            self.flush_page(linear);
        }
    }

    /// Drop the store entries of a page of the backing.
    pub fn forbid_stores(&mut self, page: u32) {
        for filled in [&mut self.global, &mut self.local] {
            for index in filled.take_stores(page) {
                self.store.set(index, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_and_addresses_convert_both_ways() {
        for linear in
            [0, 0x1000, 0x7fff_ffff_f000, 0xffff_8000_0000_0000, 0xffff_ffff_8100_0000, 0xffff_ffff_ffff_f000]
        {
            assert_eq!(linear_of(index_of(linear)), linear, "{linear:#x}");
        }
    }

    #[test]
    fn more_tables_than_the_address_space_holds_are_refused() {
        check_reservation(1).unwrap();
        assert_eq!(check_reservation(4096), Err(rustix::io::Errno::NOMEM));
    }

    #[test]
    fn an_address_plus_its_entry_is_the_host_address() {
        let s = StateMemory::new().unwrap();
        let mut v = View::new(&s, REGIONS_CAP).unwrap();
        let (linear, host) = (0xffff_ffff_8123_4000u64, 0x7f00_1234_5000u64);
        assert!(v.touch(linear));
        v.fill(Fill { linear, host, page: 7, global: true, page_shift: 12, store: true });
        let (load, store) = v.addresses();
        for table in [load, store] {
            // SAFETY: the index lies within the mapped table.
            let entry = unsafe { *((table + index_of(linear) * 8) as *const u64) };
            assert_eq!((linear + 0x123).wrapping_add(entry), host + 0x123);
        }
        v.forbid_stores(7);
        // SAFETY: as above.
        assert_eq!(unsafe { *((store + index_of(linear) * 8) as *const u64) }, 0);
    }

    #[test]
    fn a_large_page_goes_as_a_whole() {
        const HOST: u64 = 0x7f00_0000_0000;
        let s = StateMemory::new().unwrap();
        for (page_shift, linear, near, far) in [
            (21, 0x40_0000, 0x5f_f000, 0x60_0000),
            (22, 0x40_0000, 0x7f_f000, 0x80_0000),
            (30, 0x4000_0000, 0x7fff_f000, 0x8000_0000),
        ] {
            // Found by the list, by the page's extent, and when the list is full.
            for others in [0, 2000, FILLED_CAP as u64] {
                let mut v = View::new(&s, REGIONS_CAP).unwrap();
                let mut fill = |linear, page_shift| {
                    assert!(v.touch(linear));
                    v.fill(Fill {
                        linear,
                        host: linear + HOST,
                        page: 1,
                        global: false,
                        page_shift,
                        store: false,
                    });
                };
                (0..others).for_each(|n| fill(0x10_0000_0000 + (n << 12), 12));
                [linear, near, far].into_iter().for_each(|l| fill(l, page_shift));
                v.flush_page(linear + 0x1000);
                // SAFETY: the indices lie within the mapped table.
                let entry = |at: u64| unsafe { *((v.addresses().0 + index_of(at) * 8) as *const u64) };
                assert_eq!([linear, near, far].map(entry), [0, 0, HOST], "{page_shift}, {others} others");
            }
        }
    }

    #[test]
    fn a_view_ends_at_its_regions_and_at_its_stores() {
        let s = StateMemory::new().unwrap();
        let mut v = View::new(&s, 8).unwrap();
        let page = |n: u64| n << 21 | 0x3000;
        assert!((0..8).all(|n| v.touch(page(n))));
        v.fill(Fill { linear: page(3), host: 0x7000, page: 1, global: true, page_shift: 12, store: true });
        assert!(v.touch(page(7) + 0x1000), "a region that it has");
        assert!(!v.touch(page(8)));
        // What was touched stays so: a flush gives no page back.
        v.flush(true);
        assert!(!v.touch(page(8)));
        v.renew(&s);
        assert!((10..18).all(|n| v.touch(page(n))));
        assert_eq!(v.load_entry(page(3)), 0);

        let mut v = View::new(&s, REGIONS_CAP).unwrap();
        let alias = |n: usize| Fill {
            linear: 0x10_0000_0000 + ((n as u64) << 12),
            host: 0x7000,
            page: 1,
            global: false,
            page_shift: 12,
            store: true,
        };
        let fill = |v: &mut View, n| {
            v.touch(alias(n).linear) && {
                v.fill(alias(n));
                true
            }
        };
        // One page of RAM at many addresses; the same one again counts once.
        assert!((0..FURTHER_CAP).chain(0..FURTHER_CAP).all(|n| fill(&mut v, n)));
        assert!(fill(&mut v, FURTHER_CAP) && !fill(&mut v, FURTHER_CAP + 1));
        v.forbid_stores(1);
        assert!((0..=FURTHER_CAP).all(|n| v.store.get(index_of(alias(n).linear)) == 0));
        assert!(fill(&mut v, FURTHER_CAP + 1));
    }

    #[test]
    fn regions_grow_with_the_memory() {
        assert_eq!([0, 512 << 20, 64 << 30].map(regions_cap), [REGIONS_CAP, REGIONS_CAP, 1 << 16]);
    }
}
