//! Page marks: which pages hold cached code, which are logged for dirtiness.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use crate::writers::{DirectWriter, Writers};
use crate::zeroed::zeroed;
use crate::{PAGE_SIZE, RamOffset};

const CODE: u8 = 1 << 0;
const LOG: u8 = 1 << 1;
/// With `CODE`: a marked line was written to since code was last marked.
const HIT: u8 = 1 << 2;

/// Bytes covered by one bit of a page's code-line map.
const LINE: u64 = PAGE_SIZE / 64;

/// Per-page marks.
///
/// **Code.** An engine that caches decoded or translated code calls
/// [`PageMarks::mark_code`] *before* it reads the bytes, remembers the returned
/// generation, and compares it with [`PageMarks::code_generation`] before it
/// executes from its cache. Every write into a marked 64-byte line (by any vCPU
/// or device) makes the generation differ. Writers store first and look at the
/// mark after; who marks the first line of a page issues an expedited memory
/// barrier between marking and reading, so either the writer sees the mark or
/// the reader sees the data. Writers to marked pages fence before they look at
/// the lines, so further lines need no barrier.
///
/// A write into a marked line unmarks the lines it touches; a second one before
/// more code is marked unmarks the page: it is being used for something else.
///
/// **Direct writers.** Translated code stores without a look at the marks. It
/// announces itself as a [`DirectWriter`]; whoever marks a page waits until each
/// of them has heard of it (or is not running) before reading the code.
///
/// **Dirty.** While logging is on, the first write to a page since the last
/// [`PageMarks::take_dirty`] records it.
pub struct PageMarks {
    marks: Box<[AtomicU8]>,
    generations: Box<[AtomicU32]>,
    lines: Box<[AtomicU64]>,
    dirty: Box<[AtomicU64]>,
    logging: AtomicBool,
    /// Number of [`CodeEvent`]s so far; the last ones are in `recent`.
    events: AtomicU64,
    recent: Mutex<VecDeque<CodeEvent>>,
    writers: Writers,
}

/// What happened to a page, for engines that keep direct store paths to pages
/// without code and translations of pages with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeEvent {
    /// Code of this page of the backing begins to be cached.
    Marked(u32),
    /// Cached code was written to.
    Changed {
        /// Page of the backing.
        page: u32,
        /// The 64-byte lines whose code is stale, a bit each.
        lines: u64,
        /// The page's generation from now on.
        generation: u32,
    },
    /// The next store to any page must be logged.
    Logged,
}

/// The lines that `len` bytes at a page offset touch, as a bit each.
fn lines_of(offset: u64, len: u64) -> u64 {
    let first = offset / LINE;
    let last = ((offset + len.max(1) - 1) / LINE).min(63);
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

/// Events kept for readers that lag behind.
const RECENT: usize = 4096;

impl PageMarks {
    pub(crate) fn new(size: u64) -> Self {
        let pages = size.div_ceil(PAGE_SIZE);
        PageMarks {
            marks: zeroed(pages),
            generations: zeroed(pages),
            lines: zeroed(pages),
            dirty: zeroed(pages.div_ceil(64)),
            logging: AtomicBool::new(false),
            events: AtomicU64::new(0),
            recent: Mutex::new(VecDeque::new()),
            writers: Writers::default(),
        }
    }

    /// Announce code that stores to RAM without a look at the marks. `wake` makes
    /// it end soon; it is called from any thread.
    pub fn add_writer(&self, wake: impl Fn() + Send + Sync + 'static) -> Arc<DirectWriter> {
        self.writers.add(Box::new(wake))
    }

    /// Number of events so far.
    #[inline(always)]
    pub fn event_count(&self) -> u64 {
        self.events.load(Ordering::SeqCst)
    }

    /// The events after the first `seen` ones, or `None` when some are no longer
    /// known: then anything may have happened to any page.
    pub fn events_since(&self, seen: u64) -> Option<Vec<CodeEvent>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let new = usize::try_from(self.event_count() - seen).ok()?;
        (new <= recent.len()).then(|| recent.iter().skip(recent.len() - new).copied().collect())
    }

    /// Add an event; the number of events with it.
    fn record(&self, e: CodeEvent) -> u64 {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(e);
        self.events.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Whether a plain store to the page needs no look at the marks: it holds no
    /// cached code and is not waiting to be logged.
    #[inline]
    pub fn is_plain(&self, offset: RamOffset) -> bool {
        self.marks[(offset.0 / PAGE_SIZE) as usize].load(Ordering::SeqCst) == 0
    }

    /// The lines (of 64 bytes) of a page of which code is cached, a bit each: a store
    /// to others needs no look at the marks as long as nobody marks more code.
    /// `None` where every store does.
    pub fn code_lines(&self, offset: RamOffset) -> Option<&AtomicU64> {
        let page = (offset.0 / PAGE_SIZE) as usize;
        (self.marks[page].load(Ordering::SeqCst) == CODE).then(|| &self.lines[page])
    }

    /// Declare that code at `offset..offset+len` (within one page) is about to be
    /// read and cached. Returns the page's generation to remember.
    pub fn mark_code(&self, offset: RamOffset, len: u64) -> u32 {
        let page = (offset.0 / PAGE_SIZE) as usize;
        let mask = lines_of(offset.0 % PAGE_SIZE, len);
        let generation = self.generations[page].load(Ordering::Acquire);
        self.lines[page].fetch_or(mask, Ordering::SeqCst);
        let before = self.marks[page].fetch_or(CODE, Ordering::SeqCst);
        if before & HIT != 0 {
            self.marks[page].fetch_and(!HIT, Ordering::SeqCst);
        }
        if before & CODE == 0 {
            let event = self.record(CodeEvent::Marked(page as u32));
            crate::access::heavy_barrier();
            self.writers.wait_for(event);
        }
        generation
    }

    /// The page's current code generation.
    #[inline(always)]
    pub fn code_generation(&self, offset: RamOffset) -> u32 {
        self.generations[(offset.0 / PAGE_SIZE) as usize].load(Ordering::Acquire)
    }

    /// Called after every write. True if cached code was hit.
    #[inline(always)]
    pub(crate) fn written(&self, offset: u64, len: u64) -> bool {
        let page = (offset / PAGE_SIZE) as usize;
        let last = ((offset + len - 1) / PAGE_SIZE) as usize;
        if self.marks[page].load(Ordering::Relaxed) != 0 || (last != page) {
            return self.written_slow(offset, len);
        }
        false
    }

    #[cold]
    #[inline(never)]
    fn written_slow(&self, mut offset: u64, mut len: u64) -> bool {
        let mut hit = false;
        while len > 0 {
            let page = (offset / PAGE_SIZE) as usize;
            let here = len.min(PAGE_SIZE - offset % PAGE_SIZE);
            let marks = self.marks[page].load(Ordering::SeqCst);
            if marks & LOG != 0 {
                // In this order: `take_dirty` takes the bit, then sets LOG, so that whatever
                // comes between leaves the page with one of them.
                self.marks[page].fetch_and(!LOG, Ordering::SeqCst);
                self.dirty[page / 64].fetch_or(1 << (page % 64), Ordering::SeqCst);
            }
            if marks & CODE != 0 {
                fence(Ordering::SeqCst);
                hit |= self.written_beside_code(page, lines_of(offset % PAGE_SIZE, here), marks & HIT != 0);
            }
            offset += here;
            len -= here;
        }
        hit
    }

    /// A write touched the lines of `mask` in a page with cached code. True if code
    /// was hit. `again`: for the second time since code was marked.
    fn written_beside_code(&self, page: usize, mask: u64, again: bool) -> bool {
        let lines = self.lines[page].load(Ordering::SeqCst);
        let stale = lines & mask;
        if stale == 0 {
            if again && lines == 0 {
                // No code is left. Who marks some right now has either seen that the
                // page is no longer marked, or is seen here.
                self.marks[page].fetch_and(!(CODE | HIT), Ordering::SeqCst);
                if self.lines[page].load(Ordering::SeqCst) != 0 {
                    self.forget_code(page);
                }
            }
        } else if again || mask == u64::MAX {
            self.forget_code(page);
        } else {
            self.marks[page].fetch_or(HIT, Ordering::SeqCst);
            self.lines[page].fetch_and(!stale, Ordering::SeqCst);
            self.changed(page, stale);
        }
        stale != 0
    }

    /// Everything cached of this page is stale.
    fn forget_code(&self, page: usize) {
        self.marks[page].fetch_and(!(CODE | HIT), Ordering::SeqCst);
        self.lines[page].store(0, Ordering::SeqCst);
        self.changed(page, u64::MAX);
    }

    fn changed(&self, page: usize, lines: u64) {
        let generation = self.generations[page].fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        self.record(CodeEvent::Changed { page: page as u32, lines, generation });
        self.writers.wake();
    }

    /// Every store from now on must look at the marks.
    fn stores_look(&self) {
        let event = self.record(CodeEvent::Logged);
        crate::access::heavy_barrier();
        self.writers.wait_for(event);
    }

    /// Everything cached of every page is stale (an engine without write tracking ran).
    pub fn forget_all_code(&self) {
        for page in 0..self.marks.len() {
            if self.marks[page].load(Ordering::SeqCst) & CODE != 0 {
                self.forget_code(page);
            }
        }
    }

    /// Start (or stop) dirty logging; starting forgets what was recorded.
    pub fn set_dirty_logging(&self, on: bool) {
        self.logging.store(on, Ordering::SeqCst);
        for d in &self.dirty {
            d.store(0, Ordering::SeqCst);
        }
        for m in &self.marks {
            if on {
                m.fetch_or(LOG, Ordering::SeqCst)
            } else {
                m.fetch_and(!LOG, Ordering::SeqCst)
            };
        }
        self.stores_look();
    }

    /// Pages written since the last call (or since logging began), as page
    /// numbers of the backing; re-arms them.
    pub fn take_dirty(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        let logging = self.logging.load(Ordering::SeqCst);
        for (i, word) in self.dirty.iter().enumerate() {
            let mut bits = word.swap(0, Ordering::SeqCst);
            while bits != 0 {
                let page = i as u64 * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                if logging {
                    self.marks[page as usize].fetch_or(LOG, Ordering::SeqCst);
                }
                pages.push(page);
            }
        }
        if !pages.is_empty() {
            self.stores_look();
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestMemory;

    const PAGE: u64 = 0x1000;

    /// Stores to offsets of a page with code in lines 0 and 2: which lines each
    /// makes stale, and whether the page is plain at the end.
    fn check(stores: &[u64], stale: &[u64], plain: bool) {
        let m = GuestMemory::flat(0x4000).unwrap();
        for line in [0, 2] {
            m.marks().mark_code(RamOffset(PAGE + line * LINE), 8);
        }
        let seen = m.marks().event_count();
        for at in stores {
            m.write(RamOffset(PAGE + at), 1u8);
        }
        let lines: Vec<u64> = (m.marks().events_since(seen).unwrap().into_iter())
            .map(|e| match e {
                CodeEvent::Changed { page: 1, lines, .. } => lines,
                e => panic!("{e:?}"),
            })
            .collect();
        assert_eq!(lines, stale, "stores to {stores:x?}");
        assert_eq!(m.marks().is_plain(RamOffset(PAGE)), plain, "stores to {stores:x?}");
    }

    #[test]
    fn writes_make_the_lines_they_touch_stale() {
        check(&[0x40, 0x7f, 0xc0], &[], false);
        check(&[0x3f], &[1], false);
        check(&[0xbf, 0x100], &[4], false);
        check(&[0x80, 0x80], &[4], false);
    }

    #[test]
    fn a_second_hit_frees_the_page() {
        check(&[0x80, 0x00], &[4, u64::MAX], true);
        check(&[0x80, 0x00, 0x80], &[4, u64::MAX], true);
    }

    /// Stores while the dirty pages are being taken: each leaves its page recorded or
    /// to be recorded.
    #[test]
    fn a_page_written_while_dirty_pages_are_taken_is_recorded_or_will_be() {
        const ROUNDS: u64 = 1_000;
        let m = GuestMemory::flat(PAGE).unwrap();
        m.marks().set_dirty_logging(true);
        let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let lost = std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    while begun.load(Ordering::SeqCst) < round {
                        std::thread::yield_now();
                    }
                    m.write(RamOffset(0), round);
                    m.write(RamOffset(0), round);
                    done.store(round, Ordering::SeqCst);
                }
            });
            let mut lost = 0;
            for round in 1..=ROUNDS {
                begun.store(round, Ordering::SeqCst);
                while done.load(Ordering::SeqCst) < round {
                    m.marks().take_dirty();
                }
                let recorded = m.marks().dirty[0].load(Ordering::SeqCst) != 0;
                lost += u64::from(!recorded && m.marks().is_plain(RamOffset(0)));
                m.marks().set_dirty_logging(true);
            }
            lost
        });
        assert_eq!(lost, 0, "of {ROUNDS} stores");
    }

    #[test]
    fn marking_again_keeps_the_page() {
        let m = GuestMemory::flat(0x4000).unwrap();
        let mut generation = m.marks().mark_code(RamOffset(PAGE), 8);
        let seen = m.marks().event_count();
        for round in 1..5 {
            m.write(RamOffset(PAGE), 1u8);
            let now = m.marks().mark_code(RamOffset(PAGE), 8);
            assert_eq!(now, generation + 1);
            generation = now;
            // No event but the change: the page stayed marked.
            assert_eq!(m.marks().event_count(), seen + round);
        }
        // Written for something else after the last code went.
        m.write(RamOffset(PAGE), 1u8);
        assert!(!m.marks().is_plain(RamOffset(PAGE)));
        m.write(RamOffset(PAGE + 8), 1u8);
        assert!(m.marks().is_plain(RamOffset(PAGE)));
    }
}
