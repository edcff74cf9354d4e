//! The software TLB: direct-mapped, tagged with an address-space number.
//!
//! Each entry has separate tags for loads, stores and fetches: a tag that
//! matches is a permission that has been checked. Three sets keep apart what
//! user mode, supervisor mode, and supervisor mode with RFLAGS.AC set (SMAP
//! lifted) may do.

/// Entries of one set.
const SET: usize = 1024;
/// First entry of a set without translations.
const NONE: usize = 3 * SET;
/// Bytes of page offset and tag.
pub(crate) const PAGE_MASK: u64 = 0xfff;
/// Tag bit of a page that must take the slow path: device memory, or a page
/// with a data breakpoint.
const SLOW: u64 = 1 << 11;
/// Address-space numbers are 1 to this; 0 never matches.
const LAST_SPACE: u64 = 0x7ff;
/// Process-context identifiers remembered at once.
const CONTEXTS: usize = 16;

/// What an entry says of its page.
pub(crate) mod page {
    /// Kept when the address space changes.
    pub const GLOBAL: u32 = 1 << 0;
    /// Part of a page larger than 4 KiB; its log2 is in bits 8-15.
    pub const LARGE: u32 = 1 << 1;
    /// `frame` is guest-physical, not a page of the backing.
    pub const DEVICE: u32 = 1 << 2;
}

/// One translation.
#[derive(Clone, Copy, Default)]
pub(crate) struct Entry {
    /// Tag for loads. Names the page even when loads are not allowed (with
    /// address-space number 0 then).
    pub read: u64,
    pub write: u64,
    pub exec: u64,
    /// Page number: of the RAM backing, or guest-physical for device memory.
    pub frame: u32,
    pub flags: u32,
}

/// Which set an access uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    User = 0,
    Supervisor = 1,
    SupervisorAc = 2,
}

pub(crate) struct Tlb {
    entries: Box<[Entry; 4 * SET]>,
    /// First entry of the current set.
    base: usize,
    /// Current address-space number.
    space: u64,
    /// Last number handed out.
    last: u64,
    /// (PCID, number) of contexts whose translations may be kept.
    contexts: [(u16, u16); CONTEXTS],
    next_context: usize,
    /// Which 2 MiB pieces (hashed) large pages may cover.
    large: [u64; 128],
    /// Whether a page of 1 GiB was entered.
    huge: bool,
    /// Times everything was forgotten: numbers are handed out anew since.
    clears: u32,
}

impl Tlb {
    pub fn new() -> Self {
        let entries = vec![Entry::default(); 4 * SET].into_boxed_slice();
        let Ok(entries) = entries.try_into() else { unreachable!("the length is the array's") };
        Tlb {
            entries,
            base: 0,
            space: 1,
            last: 1,
            contexts: [(0, 0); CONTEXTS],
            next_context: 0,
            large: [0; 128],
            huge: false,
            clears: 0,
        }
    }

    /// Choose the set of the program's own accesses.
    pub fn select(&mut self, user: bool, ac: bool) {
        self.base = Self::set_of(user, ac) as usize * SET;
    }

    /// Choose the set that stays empty.
    pub fn select_none(&mut self) {
        self.base = NONE;
    }

    fn set_of(user: bool, ac: bool) -> Set {
        match (user, ac) {
            (true, _) => Set::User,
            (_, false) => Set::Supervisor,
            _ => Set::SupervisorAc,
        }
    }

    /// The entry of the current set that could hold `linear`.
    #[inline(always)]
    pub fn entry(&self, linear: u64) -> &Entry {
        &self.entries[(self.base + ((linear >> 12) as usize & (SET - 1))) & (4 * SET - 1)]
    }

    /// The tag that an access of `size` bytes at `linear` must find. An access
    /// that crosses into the next page looks for a tag its entry cannot have.
    #[inline(always)]
    pub fn tag(&self, linear: u64, size: usize) -> u64 {
        linear.wrapping_add(size as u64 - 1) & !PAGE_MASK | self.space
    }

    /// As [`Tlb::entry`], in any set.
    #[inline(always)]
    pub fn slot(&mut self, set: Set, linear: u64) -> &mut Entry {
        &mut self.entries[(set as usize * SET + ((linear >> 12) as usize & (SET - 1))) & (4 * SET - 1)]
    }

    /// Give a global entry of another address space to this one, if it is `linear`'s.
    pub fn adopt_global(&mut self, set: Set, linear: u64) {
        let space = self.space;
        let e = self.slot(set, linear);
        if e.flags & page::GLOBAL != 0 && (e.read ^ linear) & !PAGE_MASK == 0 {
            for tag in [&mut e.read, &mut e.write, &mut e.exec] {
                if *tag & LAST_SPACE != 0 {
                    *tag = *tag & !LAST_SPACE | space;
                }
            }
        }
    }

    /// The tag of a page, and of the same page when it must take the slow path.
    pub fn page_tags(&self, linear: u64) -> (u64, u64) {
        let tag = linear & !PAGE_MASK | self.space;
        (tag, tag | SLOW)
    }

    /// The current address-space number.
    pub fn space(&self) -> u64 {
        self.space
    }

    /// Times everything was forgotten.
    pub fn clears(&self) -> u32 {
        self.clears
    }

    /// Remember that a page of `1 << shift` bytes covers `linear`.
    pub fn note_large(&mut self, linear: u64, shift: u8) {
        if shift > 22 {
            self.huge = true;
        }
        let (word, bit) = Self::large_bit(linear);
        self.large[word] |= bit;
        // A 4 MiB page has two halves.
        let (word, bit) = Self::large_bit(linear ^ 1 << 21);
        if shift == 22 {
            self.large[word] |= bit;
        }
    }

    /// Place of a 2 MiB piece in the map of large pages; halves of the address
    /// space do not meet there.
    fn large_bit(linear: u64) -> (usize, u64) {
        let n = linear >> 21;
        ((n >> 6 & 63 | linear >> 63 << 6) as usize & 127, 1 << (n & 63))
    }

    /// Forget everything.
    pub fn clear(&mut self) {
        self.entries.fill(Entry::default());
        self.contexts = [(0, 0); CONTEXTS];
        self.large = [0; 128];
        self.huge = false;
        (self.space, self.last) = (1, 1);
        self.clears = self.clears.wrapping_add(1);
    }

    fn fresh_space(&mut self) -> u64 {
        if self.last == LAST_SPACE {
            self.clear();
        }
        self.last += 1;
        self.last
    }

    /// Forget the current address space, except global pages.
    pub fn new_space(&mut self) {
        self.space = self.fresh_space();
    }

    /// Forget all address spaces, except global pages.
    pub fn forget_contexts(&mut self) {
        self.contexts = [(0, 0); CONTEXTS];
        self.new_space();
    }

    /// Forget one process context.
    pub fn forget_context(&mut self, pcid: u16) {
        for c in &mut self.contexts {
            if c.0 == pcid {
                *c = (0, 0);
            }
        }
    }

    /// Enter a process context, keeping what is known of it if `keep`.
    pub fn enter_context(&mut self, pcid: u16, keep: bool) {
        if let Some(c) = self.contexts.iter().find(|c| keep && c.0 == pcid && c.1 != 0) {
            self.space = u64::from(c.1);
            return;
        }
        self.space = self.fresh_space();
        self.forget_context(pcid);
        self.contexts[self.next_context] = (pcid, self.space as u16);
        self.next_context = (self.next_context + 1) % CONTEXTS;
    }

    /// Forget the page of `linear` in the current address space and as a global page.
    pub fn forget_page(&mut self, linear: u64) {
        for set in [Set::User, Set::Supervisor, Set::SupervisorAc] {
            let e = self.slot(set, linear);
            if (e.read ^ linear) & !PAGE_MASK == 0 {
                *e = Entry::default();
            }
        }
        let (word, bit) = Self::large_bit(linear);
        if self.huge {
            self.forget_pieces(linear, 0, SET);
        } else if self.large[word] & bit != 0 {
            // The pieces of 4 MiB lie in all slots, those of 2 MiB in half of them.
            let first = (linear >> 12) as usize & (SET - 1) & !511;
            self.forget_pieces(linear, first, 512);
            self.forget_pieces(linear, first ^ 512, 512);
        }
    }

    /// Forget the entries of `linear`'s large page in some slots of every set.
    fn forget_pieces(&mut self, linear: u64, first: usize, count: usize) {
        for set in self.entries.chunks_exact_mut(SET) {
            for e in set[first..first + count].iter_mut().filter(|e| e.flags & page::LARGE != 0) {
                let shift = e.flags >> 8 & 63;
                if (e.read ^ linear) >> shift == 0 {
                    *e = Entry::default();
                }
            }
        }
    }

    /// Whether `linear` may lie in a large page.
    pub fn may_be_large(&self, linear: u64) -> bool {
        let (word, bit) = Self::large_bit(linear);
        self.huge || self.large[word] & bit != 0
    }
}
