//! Which address tables are in force: one view for each user context, one for
//! the supervisor, one for the supervisor reaching user pages (AC set), and
//! what is known of the pages code was fetched from.

use x86_mmu::Translation;

use crate::blocks::AddressMap;
use crate::modes::Kind;
use crate::tables::{self, StateMemory, View};

/// Most flushes that are worked off one by one; more are a flush of everything.
pub(crate) const FLUSHES: usize = 16;
/// User contexts kept at once.
pub(crate) const CONTEXTS: usize = 6;

/// What names an address space: the PCID, or without PCIDs the root of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContextKey {
    Pcid(u16),
    Root(u64),
}

/// A page that code may be fetched from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CodePage {
    /// Where it is in the backing.
    pub ram: u64,
    pub global: bool,
    /// Binary logarithm of the size of the guest's page.
    pub page_shift: u8,
}

impl CodePage {
    /// The page of `ram`, to which a walk of the guest's tables has led.
    pub fn new(ram: u64, t: &Translation) -> Self {
        CodePage { ram: ram & !0xfff, global: t.global, page_shift: t.page_shift }
    }

    /// As a map of code pages keeps it: see [`place`] and [`GLOBAL`].
    fn known(self) -> u64 {
        self.ram | u64::from(self.page_shift) << 1 | u64::from(self.global)
    }
}

/// A page that code was fetched from and is not where it was: numbers of the linear
/// page and of the backing's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LostPage {
    pub linear: u64,
    pub ram: u32,
}

struct Context {
    key: ContextKey,
    view: Option<View>,
    /// Pages that code which is not shared was fetched from, by [`code_key`]: what
    /// [`CodePage::known`] says.
    code: AddressMap<u64, u64>,
    number: u32,
    used: u64,
}

/// Every view of one vCPU.
pub(crate) struct Spaces {
    /// How much of its tables each view may touch.
    regions_cap: usize,
    contexts: Vec<Context>,
    current: usize,
    supervisor: View,
    supervisor_ac: View,
    /// Code pages shared by all contexts, the upper half and the supervisor's 32-bit
    /// code, by [`code_key`]: global ones, and those that each change of address space
    /// flushes.
    shared_global: AddressMap<u64, u64>,
    shared_local: AddressMap<u64, u64>,
    /// Larger pages that code was fetched from: size as a binary logarithm, page number.
    large: AddressMap<(u8, u64), ()>,
    /// The last number of a code mapping given out, and the last there is.
    numbers: u32,
    last_number: u32,
    /// Numbers are used again: what was made under the old ones must go.
    reused: bool,
    clock: u64,
}

/// Sizes of larger pages, as binary logarithms.
const LARGE: [u8; 3] = [21, 22, 30];

/// A global page, which INVLPG in any context flushes.
const GLOBAL: u64 = 1;

/// What a page is known under that `va` is fetched from, at CPL 3 or not: who may fetch
/// from it is checked for each that did.
fn code_key(va: u64, user: bool) -> u64 {
    va >> 12 << 1 | u64::from(user)
}

/// Page number and privilege of a [`code_key`].
fn page_of(key: u64) -> (u64, bool) {
    (key >> 1, key & 1 != 0)
}

/// Of what is known of a code page, where it is in RAM.
fn place(known: u64) -> u64 {
    known & !0xfff
}

/// The highest number of a code mapping, before numbers are used again.
pub(crate) const LAST_NUMBER: u32 = 0x3fff_fffe;

/// What a link is compared with that is not made: with a class below it, no number that
/// is given out makes this.
pub(crate) const NO_SPACE: u32 = u32::MAX;
const _: () = assert!(LAST_NUMBER < NO_SPACE >> 2);

/// Code pages known of one context, or of all together: 64 MiB that code was fetched from.
/// A guest may map one page everywhere, and each flush walks those that are known.
pub(crate) const CODE_PAGES_CAP: usize = 1 << 14;

impl Spaces {
    /// No translations; the guest has so many bytes of RAM.
    pub fn new(state: &StateMemory, ram: u64) -> rustix::io::Result<Self> {
        let regions_cap = tables::regions_cap(ram);
        let mut s = Spaces {
            regions_cap,
            contexts: Vec::new(),
            current: 0,
            supervisor: View::new(state, regions_cap)?,
            supervisor_ac: View::new(state, regions_cap)?,
            shared_global: AddressMap::default(),
            shared_local: AddressMap::default(),
            large: AddressMap::default(),
            numbers: 0,
            last_number: LAST_NUMBER,
            reused: false,
            clock: 0,
        };
        s.enter(ContextKey::Root(0), false);
        Ok(s)
    }

    /// Give out numbers of code mappings from `first` to `last`.
    pub fn limit_numbers(&mut self, first: u32, last: u32) {
        self.last_number = last.clamp(CONTEXTS as u32 + 2, LAST_NUMBER);
        self.numbers = first.clamp(1, self.last_number) - 1;
    }

    fn fresh_number(&mut self) -> u32 {
        if self.numbers >= self.last_number {
            // Others may have kept theirs since they were given out before.
            for (n, c) in (1..).zip(&mut self.contexts) {
                c.number = n;
            }
            self.numbers = self.contexts.len() as u32;
            self.reused = true;
        }
        self.numbers += 1;
        self.numbers
    }

    /// Whether numbers are used again since this was asked last: blocks, links and what
    /// else knows a number were made under the old ones.
    pub fn take_reused(&mut self) -> bool {
        std::mem::take(&mut self.reused)
    }

    /// Number of the current lower-half code mapping.
    pub fn number(&self) -> u32 {
        self.contexts[self.current].number
    }

    /// The view for accesses of this kind, made at first use.
    pub fn view(&mut self, kind: Kind, state: &StateMemory) -> rustix::io::Result<&mut View> {
        let regions_cap = self.regions_cap;
        Ok(match kind {
            Kind::Supervisor => &mut self.supervisor,
            Kind::SupervisorAc => &mut self.supervisor_ac,
            Kind::User => {
                let c = &mut self.contexts[self.current];
                match &mut c.view {
                    Some(v) => v,
                    none => none.insert(View::new(state, regions_cap)?),
                }
            }
        })
    }

    /// Load and store table of each kind of access; zero where none exists yet.
    /// Without SMAP AC makes no difference.
    pub fn addresses(&self, smap: bool) -> [[u64; 2]; 3] {
        let pair = |v: &View| <[u64; 2]>::from(v.addresses());
        let user = self.contexts[self.current].view.as_ref().map_or([0; 2], pair);
        let ac = if smap { &self.supervisor_ac } else { &self.supervisor };
        [user, pair(&self.supervisor), pair(ac)]
    }

    fn views(&mut self) -> impl Iterator<Item = &mut View> {
        let users = self.contexts.iter_mut().filter_map(|c| c.view.as_mut());
        users.chain([&mut self.supervisor, &mut self.supervisor_ac])
    }

    /// What the current context is called.
    pub fn key(&self) -> ContextKey {
        self.contexts[self.current].key
    }

    /// CR3 now names this context; true if its translations start empty.
    pub fn enter(&mut self, key: ContextKey, keep: bool) -> bool {
        self.clock += 1;
        self.supervisor.flush(false);
        self.supervisor_ac.flush(false);
        let found = self.contexts.iter().position(|c| c.key == key);
        let at = found.unwrap_or_else(|| {
            if self.contexts.len() < CONTEXTS {
                self.contexts.push(Context {
                    key,
                    view: None,
                    code: AddressMap::default(),
                    number: 0,
                    used: 0,
                });
                self.contexts.len() - 1
            } else {
                let oldest = self.contexts.iter().enumerate().min_by_key(|(_, c)| c.used);
                oldest.map_or(0, |(i, _)| i)
            }
        });
        self.current = at;
        let stale = found.is_none() || !keep;
        // A context that takes another's place must not inherit its links.
        let number = if found.is_none() { self.fresh_number() } else { self.contexts[at].number };
        let clock = self.clock;
        let c = &mut self.contexts[at];
        c.used = clock;
        c.number = number;
        c.key = key;
        if found.is_none() {
            c.code.clear();
        }
        if stale && let Some(v) = &mut c.view {
            v.flush(true);
        }
        stale
    }

    /// Forget a context's data translations.
    pub fn flush_context(&mut self, key: ContextKey) {
        if self.key() == key {
            self.supervisor.flush(false);
            self.supervisor_ac.flush(false);
        }
        let named = self.contexts.iter_mut().filter(|c| c.key == key);
        named.filter_map(|c| c.view.as_mut()).for_each(|v| v.flush(true));
    }

    /// Forget all data translations.
    pub fn flush(&mut self, globals: bool) {
        self.views().for_each(|v| v.flush(globals));
    }

    /// Forget the data translations of one page: the current context's, and all global
    /// ones (SDM volume 3, 5.10.4.1). Other contexts do not know it as code either, then.
    /// The code page that is to be verified; `None`: all, since it may have been in a larger
    /// page, which goes as a whole.
    pub fn flush_page(&mut self, linear: u64) -> Option<u64> {
        let large = self.may_be_large(linear);
        self.supervisor.flush_page(linear);
        self.supervisor_ac.flush_page(linear);
        let keys = [false, true].map(|user| code_key(linear, user));
        for n in 0..self.contexts.len() {
            let c = &mut self.contexts[n];
            if n == self.current {
                c.view.iter_mut().for_each(|v| v.flush_page(linear));
                continue;
            }
            c.view.iter_mut().for_each(|v| v.flush_global_page(linear));
            let global = |key: &u64| c.code.get(key).is_some_and(|known| known & GLOBAL != 0);
            if large {
                c.code.clear();
                self.contexts[n].number = self.fresh_number();
            } else if keys.iter().any(global) {
                keys.iter().for_each(|key| _ = c.code.remove(key));
                self.contexts[n].number = self.fresh_number();
            }
        }
        (!large).then_some(linear)
    }

    /// Whether code was fetched from a larger page that `linear` is in; so for all where
    /// there were too many to tell.
    fn may_be_large(&self, linear: u64) -> bool {
        let is = |shift: u8| self.large.contains_key(&(shift, linear >> shift));
        self.large.len() >= CODE_PAGES_CAP || LARGE.into_iter().any(is)
    }

    fn note_size(&mut self, linear: u64, page: CodePage) {
        if page.page_shift > 12 && self.large.len() < CODE_PAGES_CAP {
            self.large.insert((page.page_shift, linear >> page.page_shift), ());
        }
    }

    /// No direct stores to a page of the backing any more.
    pub fn forbid_stores(&mut self, page: u32) {
        self.views().for_each(|v| v.forbid_stores(page));
    }

    /// No direct stores to any page any more.
    pub fn forbid_all_stores(&mut self) {
        self.flush(true);
    }

    /// Forget the code pages, own ones or `shared` ones, where there are too many; true if
    /// all blocks must be dropped for that.
    pub fn make_room_for_code(&mut self, shared: bool) -> bool {
        if shared {
            let full = self.shared_global.len() + self.shared_local.len() >= CODE_PAGES_CAP;
            if full {
                self.shared_global = AddressMap::default();
                self.shared_local = AddressMap::default();
            }
            return full;
        }
        let current = self.current;
        if self.contexts[current].code.len() >= CODE_PAGES_CAP {
            // What is linked there holds under the number before, which nobody has now.
            self.contexts[current].number = self.fresh_number();
            self.contexts[current].code = AddressMap::default();
        }
        self.take_reused()
    }

    /// Where the code page of `va` is, if that is known.
    /// `shared`: see `Mode::shares`; `user`: fetched at CPL 3.
    pub fn code_page(&self, va: u64, shared: bool, user: bool) -> Option<u64> {
        let key = code_key(va, user);
        let known = if shared {
            self.shared_global.get(&key).or_else(|| self.shared_local.get(&key))
        } else {
            self.contexts[self.current].code.get(&key)
        };
        known.map(|known| place(*known))
    }

    /// Remember where the code page of `va` is.
    pub fn set_code_page(&mut self, va: u64, shared: bool, user: bool, page: CodePage) {
        let key = code_key(va, user);
        self.note_size(va, page);
        if shared {
            self.set_shared(key, page);
        } else {
            self.contexts[self.current].code.insert(key, page.known());
        }
    }

    fn set_shared(&mut self, key: u64, page: CodePage) {
        let (to, from) = match page.global {
            true => (&mut self.shared_global, &mut self.shared_local),
            false => (&mut self.shared_local, &mut self.shared_global),
        };
        from.remove(&key);
        to.insert(key, page.known());
    }

    /// Check the current context's own code pages against `walk` after its
    /// translations were flushed. If one moved, links to code that is not shared end.
    pub fn verify_own(&mut self, only: Option<u64>, mut walk: impl FnMut(u64, bool) -> Option<CodePage>) {
        let current = self.current;
        let mut changed = Vec::new();
        let stays = |(page, user): (u64, bool), known: &mut u64| match walk(page << 12, user) {
            Some(now) if now.ram == place(*known) => {
                if now.known() != *known {
                    *known = now.known();
                    changed.push((page << 12, now));
                }
                true
            }
            _ => false,
        };
        if !moved(&mut self.contexts[current].code, only, stays).is_empty() {
            self.contexts[current].number = self.fresh_number();
        }
        changed.into_iter().for_each(|(va, now)| self.note_size(va, now));
    }

    /// The same for shared code pages: where in the backing those are that moved.
    /// `globals`: global pages were flushed too.
    pub fn verify_shared(
        &mut self,
        only: Option<u64>,
        globals: bool,
        mut walk: impl FnMut(u64, bool) -> Option<CodePage>,
    ) -> Vec<LostPage> {
        let mut changed = Vec::new();
        let mut stays = |(page, user): (u64, bool), known: &mut u64| match walk(page << 12, user) {
            Some(now) if now.ram == place(*known) => {
                if now.known() != *known {
                    changed.push((page << 12, user, now));
                }
                true
            }
            _ => false,
        };
        let mut lost = moved(&mut self.shared_local, only, &mut stays);
        if globals {
            lost.extend(moved(&mut self.shared_global, only, &mut stays));
        }
        for (va, user, now) in changed {
            self.set_code_page(va, true, user, now);
        }
        lost
    }

    /// A context's own code pages are not known any more.
    pub fn forget_code(&mut self, key: ContextKey) {
        for i in (0..self.contexts.len()).filter(|i| self.contexts[*i].key == key).collect::<Vec<_>>() {
            self.contexts[i].number = self.fresh_number();
            self.contexts[i].code.clear();
        }
    }

    /// Other contexts' code pages are not known any more.
    pub fn forget_other_code(&mut self) {
        let current = self.current;
        let named = |c: &Context| matches!(c.key, ContextKey::Pcid(_));
        for i in (0..self.contexts.len()).filter(|i| *i != current) {
            // Without PCIDs pages are verified whenever a context is entered.
            if !named(&self.contexts[i]) {
                continue;
            }
            let number = self.fresh_number();
            let c = &mut self.contexts[i];
            c.code.clear();
            c.number = number;
        }
    }
}

/// Drop the code pages that do not stay: those that were.
fn moved(
    map: &mut AddressMap<u64, u64>,
    only: Option<u64>,
    mut stays: impl FnMut((u64, bool), &mut u64) -> bool,
) -> Vec<LostPage> {
    let mut lost = Vec::new();
    let mut check = |key: u64, known: &mut u64| {
        let at = page_of(key);
        let stays = stays(at, known);
        if !stays {
            lost.push(LostPage { linear: at.0, ram: (*known >> 12) as u32 });
        }
        stays
    };
    match only {
        Some(va) => {
            for key in [false, true].map(|user| code_key(va, user)) {
                if map.get_mut(&key).is_some_and(|known| !check(key, known)) {
                    map.remove(&key);
                }
            }
        }
        None => map.retain(|key, known| check(*key, known)),
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 3 * CODE_PAGES_CAP as u64;

    /// Fetch from pages, all at one place in RAM, as the engine does; how often all blocks
    /// had to go, and the most pages known at once.
    fn fetch(s: &mut Spaces, first: u64, shared: bool) -> (usize, usize) {
        let (mut dropped, mut most) = (0, 0);
        for va in (0..PAGES).map(|n| first + (n << 12)) {
            dropped += usize::from(s.make_room_for_code(shared));
            let global = va >> 12 & 1 != 0;
            s.set_code_page(va, shared, false, CodePage { ram: 0x5000, global, page_shift: 12 });
            assert_eq!(s.code_page(va, shared, false), Some(0x5000));
            let own = s.contexts[s.current].code.len();
            most = most.max(own + s.shared_global.len() + s.shared_local.len());
        }
        (dropped, most)
    }

    #[test]
    fn code_pages_have_an_end() {
        let mut s = Spaces::new(&StateMemory::new().unwrap(), 0).unwrap();
        let number = s.number();
        assert_eq!(fetch(&mut s, 0, false), (0, CODE_PAGES_CAP));
        // Links made before the pages were forgotten are not taken any more.
        assert_eq!(s.number(), number + 2);
        let mut s = Spaces::new(&StateMemory::new().unwrap(), 0).unwrap();
        assert_eq!(fetch(&mut s, 1 << 63, true), (2, CODE_PAGES_CAP));
        // Where that takes the last number, what knows the first ones goes.
        let mut s = Spaces::new(&StateMemory::new().unwrap(), 0).unwrap();
        s.limit_numbers(LAST_NUMBER, LAST_NUMBER);
        assert_eq!(fetch(&mut s, 0, false), (1, CODE_PAGES_CAP));
    }
}
