//! Page marks: which pages hold cached code, which are logged for dirtiness.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::writers::{DirectWriter, Writers};
use crate::zeroed::zeroed;
use crate::{PAGE_SIZE, RamOffset};

const CODE: u8 = 1 << 0;
const LOG: u8 = 1 << 1;

/// Bytes covered by one bit of a page's code-line map.
const LINE: u64 = PAGE_SIZE / 64;

/// Per-page marks.
///
/// **Code.** An engine that caches decoded or translated code calls
/// [`PageMarks::mark_code`] *before* it reads the bytes, remembers the returned
/// generation, and compares it with [`PageMarks::code_generation`] before it
/// executes from its cache. Every write into a marked 64-byte line (by any vCPU
/// or device) makes the generation differ. Writers store first and look at the
/// mark after; the marker issues an expedited memory barrier between marking
/// and reading, so either the writer sees the mark or the reader sees the data.
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
    /// Cached code of this page was written to.
    Changed(u32),
    /// The next store to any page must be logged.
    Logged,
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
        self.events.load(Ordering::Acquire)
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

    /// Declare that code at `offset..offset+len` (within one page) is about to be
    /// read and cached. Returns the page's generation to remember.
    pub fn mark_code(&self, offset: RamOffset, len: u64) -> u32 {
        let page = (offset.0 / PAGE_SIZE) as usize;
        let first = offset.0 % PAGE_SIZE / LINE;
        let last = ((offset.0 % PAGE_SIZE + len.max(1) - 1) / LINE).min(63);
        let mask = (u64::MAX >> (63 - last)) & (u64::MAX << first);
        let generation = self.generations[page].load(Ordering::Acquire);
        let known = self.lines[page].fetch_or(mask, Ordering::SeqCst);
        let first_of_page = self.marks[page].fetch_or(CODE, Ordering::SeqCst) & CODE == 0;
        if first_of_page {
            let event = self.record(CodeEvent::Marked(page as u32));
            crate::access::heavy_barrier();
            self.writers.wait_for(event);
        } else if known & mask != mask {
            crate::access::heavy_barrier();
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
                self.dirty[page / 64].fetch_or(1 << (page % 64), Ordering::SeqCst);
                self.marks[page].fetch_and(!LOG, Ordering::SeqCst);
            }
            if marks & CODE != 0 {
                let first = offset % PAGE_SIZE / LINE;
                let last = (offset % PAGE_SIZE + here - 1) / LINE;
                let mask = (u64::MAX >> (63 - last)) & (u64::MAX << first);
                if self.lines[page].load(Ordering::SeqCst) & mask != 0 {
                    self.forget_code(page);
                    hit = true;
                }
            }
            offset += here;
            len -= here;
        }
        hit
    }

    /// Everything cached of this page is stale.
    fn forget_code(&self, page: usize) {
        self.marks[page].fetch_and(!CODE, Ordering::SeqCst);
        self.lines[page].store(0, Ordering::SeqCst);
        self.generations[page].fetch_add(1, Ordering::SeqCst);
        self.record(CodeEvent::Changed(page as u32));
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
