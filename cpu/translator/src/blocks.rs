//! The translated blocks of one vCPU and the code that holds them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::{Duration, Instant};

use code_cache::{CodeCache, CodeCacheError};

use crate::block::{self, HostFeatures, Mode, Request, Scratch, Variant};
use crate::emit::{Emitter, Mem};
use crate::foresight::Foresight;
use crate::id_table::IdTable;
use crate::layout::host;
use crate::ledger::{Entry, Ledger};
pub(crate) use crate::records::Key;
use crate::records::{Block, InstructionMap, LinkRecord, Second};
use crate::spaces::LostPage;
use crate::string_thunks::{self, StringThunks};
use crate::system_thunks::{self, SystemThunks};
use crate::thunks::{self, Thunks};

/// Most code of one vCPU, in bytes; all of it is dropped when it is full.
const CODE_CAP: usize = 32 << 20;

/// Bytes of code for which it is known which block is the first in them.
const CODE_PAGE: u32 = 4096;

/// Room for what the jump cache holds for a block.
const STUB_CODE: usize = 96;

/// Blocks translated before an idle vCPU gives back what that took, and for how long it
/// has translated few then.
const SETTLING: u64 = 1 << 10;
const FEW: u64 = 1 << 8;
const QUIET: Duration = Duration::from_millis(250);

/// Pages of code written before an idle vCPU lets go of the mapping it writes through:
/// then faulting some of them in again costs little beside what was written.
const RELEASED_PAGES: usize = 32;

/// Multiplicative hashing: keys are addresses.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u8(&mut self, v: u8) {
        self.write_u64(u64::from(v));
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0.rotate_left(23) ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

pub(crate) type AddressMap<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// Make room for so many more, and an eighth: records are many, and twice as much as is
/// used would be half of what the process takes besides the guest's memory.
pub(crate) fn grow<T>(list: &mut Vec<T>, more: usize) {
    if list.capacity() - list.len() < more {
        list.reserve_exact(more.max(list.len() / 8));
    }
}

/// What the jump cache holds for a block.
#[derive(Debug, Clone, Copy)]
struct Stub {
    /// Cache offsets of its start and of its jump to the block.
    at: u32,
    jump: u32,
    /// The address-space number it is good for.
    space: u32,
}

/// The blocks of one page of RAM.
#[derive(Default)]
struct PageBlocks {
    /// The page's code generation they were made from.
    generation: u32,
    ids: Vec<u32>,
}

/// Blocks, links and code.
pub(crate) struct Blocks {
    cache: CodeCache,
    pub thunks: Thunks,
    strings: StringThunks,
    system: SystemThunks,
    floor: usize,
    features: HostFeatures,
    scratch: Scratch,
    list: Vec<Block>,
    /// The first block that begins in each page of code or behind it.
    first_in_page: Vec<u32>,
    map: InstructionMap,
    /// Of those that straddle two pages.
    seconds: AddressMap<u32, Second>,
    /// Jump-cache stubs, by block.
    stubs: AddressMap<u32, Stub>,
    /// The first of the dead blocks that a block replaces.
    origins: AddressMap<u32, u32>,
    by_key: IdTable,
    by_page: AddressMap<u32, PageBlocks>,
    /// Those that are of no page: they compare the guest's bytes themselves.
    vigilant: Vec<u32>,
    links: Vec<LinkRecord>,
    /// A block was dropped that calls outstanding may return into: they must be forgotten.
    pub returns_lost: bool,
    pub translated: u64,
    /// `translated` when what starting took was given back last, and since when it has
    /// grown little.
    settled: u64,
    seen: Option<(u64, Instant)>,
    pub flushes: u64,
    pub ledger: Ledger,
    pub foresight: Foresight,
    /// The same of blocks whose probes guess that operands do not cross pages.
    crossings: Foresight,
}

impl Blocks {
    /// No blocks; `features` may be used by translated guest instructions.
    pub fn new(features: HostFeatures) -> Result<Self, CodeCacheError> {
        let mut cache = CodeCache::new(CODE_CAP)?;
        let at = cache.next_offset();
        let (code, thunks) =
            thunks::assemble(cache.exec_base(), at).expect("the thunks assemble: they are constant");
        cache.append(&code).expect("the thunks fit");
        let at = cache.next_offset();
        let (code, strings) = string_thunks::assemble(cache.exec_base(), at, &thunks.exits)
            .expect("the thunks assemble: they are constant");
        cache.append(&code).expect("the thunks fit");
        let at = cache.next_offset();
        let (code, system) = system_thunks::assemble(cache.exec_base(), at, &thunks.exits)
            .expect("the thunks assemble: they are constant");
        cache.append(&code).expect("the thunks fit");
        let floor = cache.used();
        Ok(Blocks {
            cache,
            thunks,
            strings,
            system,
            floor,
            features,
            scratch: Scratch::new(features),
            list: Vec::new(),
            first_in_page: Vec::new(),
            map: InstructionMap::default(),
            seconds: AddressMap::default(),
            stubs: AddressMap::default(),
            origins: AddressMap::default(),
            by_key: IdTable::default(),
            by_page: AddressMap::default(),
            vigilant: Vec::new(),
            links: Vec::new(),
            returns_lost: false,
            translated: 0,
            settled: 0,
            seen: None,
            flushes: 0,
            ledger: Ledger::default(),
            foresight: Foresight::default(),
            crossings: Foresight::default(),
        })
    }

    /// First and last address of code.
    pub fn extent(&self) -> (u64, u64) {
        (self.cache.exec_base(), self.cache.size() as u64)
    }

    pub fn address(&self, offset: u32) -> u64 {
        self.cache.exec_base() + u64::from(offset)
    }

    pub fn get(&self, id: u32) -> &Block {
        &self.list[id as usize]
    }

    pub fn find(&self, key: &Key) -> Option<u32> {
        let place = key.place();
        let is = |id: u32| {
            let b = &self.list[id as usize];
            b.is_at(place) && !b.dead()
        };
        self.by_key.find(key.hash(), is)
    }

    pub fn code_bytes(&self) -> usize {
        self.cache.used()
    }

    /// About what is kept of blocks besides their code, in bytes.
    pub fn record_bytes(&self) -> usize {
        let ids: usize = self.by_page.values().map(|p| p.ids.capacity()).sum();
        self.list.capacity() * size_of::<Block>()
            + self.links.capacity() * size_of::<LinkRecord>()
            + self.by_page.capacity() * size_of::<(u32, PageBlocks)>()
            + self.stubs.capacity() * size_of::<(u32, Stub)>()
            + (self.by_key.capacity() + ids) * size_of::<u32>()
            + self.map.bytes()
    }

    /// The block that a stub belongs to, and the byte after the stub's call.
    pub fn site(&self, site: u64) -> Option<(u32, u8)> {
        let at = self.cache.offset_of(site)?;
        Some((self.holding(at)?, self.cache.read_u8(at)?))
    }

    /// Cache offset behind a stub's call and payload.
    pub fn behind(&self, site: u64) -> Option<u32> {
        Some(self.cache.offset_of(site)? + 1)
    }

    /// The last block that begins at or before a cache offset.
    fn last_before(&self, at: u32) -> Option<u32> {
        let first = |page: usize| self.first_in_page.get(page).map(|id| *id as usize);
        let page = (at / CODE_PAGE) as usize;
        let from = first(page).unwrap_or(self.list.len()).saturating_sub(1);
        let to = first(page + 1).unwrap_or(self.list.len());
        let before = self.list.get(from..to)?.partition_point(|b| b.start <= at);
        (from + before).checked_sub(1).map(|id| id as u32)
    }

    /// The block whose code is at a cache offset.
    fn holding(&self, at: u32) -> Option<u32> {
        self.last_before(at).filter(|id| at - self.get(*id).start < u32::from(self.get(*id).len))
    }

    /// Block and instruction at a host address within the code.
    pub fn instruction_at(&self, address: u64) -> Option<(u32, usize)> {
        let at = self.cache.offset_of(address)?;
        let id = self.holding(at)?;
        let b = self.get(id);
        let within = at - b.start;
        let i = self.map.of(b).take_while(|(host, _)| *host <= within).count().checked_sub(1)?;
        Some((id, i))
    }

    /// (host offset, guest offset) of an instruction of a block.
    fn offsets(&self, b: &Block, instruction: usize) -> (u32, u32) {
        self.map.of(b).nth(instruction).unwrap_or_default()
    }

    /// Cache offset of an instruction's host code.
    pub fn host_offset(&self, id: u32, instruction: usize) -> u32 {
        let b = self.get(id);
        b.start + self.offsets(b, instruction).0
    }

    /// Linear address of an instruction.
    pub fn linear(&self, id: u32, instruction: usize) -> u64 {
        let b = self.get(id);
        b.va().wrapping_add(u64::from(self.offsets(b, instruction).1))
    }

    /// The page of the backing that a block's last bytes are in, when its one
    /// instruction straddles two.
    pub fn second(&self, id: u32) -> Option<u32> {
        self.get(id).straddles().then(|| self.seconds.get(&id).map(|s| s.page))?
    }

    /// Translate the block at `key` from the bytes up to its page's end. `None`: its
    /// first instruction is the interpreter's, or `confirm`, called with the number
    /// of bytes translated, says that they have changed meanwhile. It returns the
    /// page's code generation, and the second page's. `second`: the one instruction
    /// straddles; the other page and the number of the current code mapping. `host`:
    /// where the bytes are, for code that has been rewritten often.
    pub fn translate(
        &mut self,
        key: Key,
        bytes: &[u8],
        host: u64,
        second: Option<(u32, u32)>,
        confirm: impl FnOnce(u64) -> Option<(u32, u32)>,
    ) -> Option<u32> {
        let began = Instant::now();
        let id = self.list.len() as u32;
        let at = self.cache.next_offset();
        let (by_key, list) = (&self.by_key, &self.list);
        // Of the same page only.
        let known = |va: u64, variant: Variant| {
            let same_page = (va ^ key.va) >> 12 == 0;
            let mode = Mode { variant, ..key.mode };
            let key = Key { ram: key.ram & !0xfff | va & 0xfff, va, mode };
            let place = key.place();
            let is = |id: u32| {
                let b = &list[id as usize];
                b.is_at(place) && !b.dead()
            };
            let b = same_page.then(|| by_key.find(key.hash(), is)).flatten().map(|id| &list[id as usize]);
            b.filter(|b| !b.straddles()).map(|b| (b.entry(), b.inner()))
        };
        let mut rewritten = self.rewritten(&key);
        let mut request = Request {
            bytes,
            va: key.va,
            at,
            mode: key.mode,
            straddling: second.map(|(_, space)| space),
            vigilant: (rewritten >= Block::OFTEN && second.is_none() && key.mode.longest > 1).then_some(host),
            thunks: &self.thunks,
            strings: &self.strings,
            system: &self.system,
            features: &self.features,
            foresight: &self.foresight,
            careful: !self.crossings.allows(key.va),
            known: &known,
        };
        let mut t = block::translate(&request, &mut self.scratch);
        if t.is_none() && request.vigilant.take().is_some() {
            t = block::translate(&request, &mut self.scratch);
        }
        let (vigilant, t, mut pages) = (request.vigilant.is_some(), t?, [None; 2]);
        if !vigilant {
            // A vigilant block's page needs no mark.
            rewritten = rewritten.min(Block::OFTEN - 1);
            let (first, other) = confirm(u64::from(t.guest_len))?;
            pages = [Some(((key.ram >> 12) as u32, first)), second.map(|(page, _)| (page, other))];
        }
        let links = self.links.len() as u32;
        let mut block = Block::new(&key, at, (t.entry, t.inner), links, t.code().len() as u16, t.guest_len)?;
        block.repeat_at(t.again)?;
        block.set_rewritten(rewritten);
        self.cache.append(t.code())?;
        self.ledger.note(&Entry {
            began,
            guest: key.va,
            guest_len: t.guest_len.into(),
            instructions: t.map.len(),
            host: self.cache.exec_base() + u64::from(at),
            code: t.code(),
        });
        grow(&mut self.links, t.links.len());
        self.links.extend(t.links.iter().map(LinkRecord::new));
        self.vigilant.extend(vigilant.then_some(id));
        if let Some((page, _)) = second {
            self.seconds.insert(id, Second { page, guard: t.guard.map(|g| at + g) });
        }
        self.map.add(&mut block, &t.map);
        while self.first_in_page.len() <= (at / CODE_PAGE) as usize {
            self.first_in_page.push(id);
        }
        grow(&mut self.list, 1);
        self.list.push(block);
        self.scratch.recycle(t);
        let list = &self.list;
        let hash_of = |id: u32| {
            let b = &list[id as usize];
            (!b.dead()).then(|| b.key().hash())
        };
        self.by_key.insert(key.hash(), id, hash_of);
        for (page, generation) in pages.into_iter().flatten() {
            let blocks = self.by_page.entry(page).or_default();
            // Where there are others, what changed since they were made is known
            // soon, and brings them to this generation.
            if blocks.ids.is_empty() {
                blocks.generation = generation;
            }
            blocks.ids.push(id);
        }
        self.translated += 1;
        Some(id)
    }

    /// How often code at a place was rewritten: 0 if it is new or the last block there was
    /// a vigilant one.
    fn rewritten(&self, key: &Key) -> u16 {
        let place = key.place();
        let last = self.by_key.find(key.hash(), |id| self.list[id as usize].is_at(place));
        let last = last.map(|id| &self.list[id as usize]);
        last.filter(|b| !b.vigilant()).map_or(0, |b| b.rewritten() + 1)
    }

    /// Whether another block may not fit: time to drop everything.
    pub fn nearly_full(&self) -> bool {
        self.cache.size() - self.cache.used() < 64 << 10 || self.list.len() >= IdTable::NUMBERS as usize
    }

    /// The vCPU has nothing to do: see [`CodeCache::release_writes`]. When it had nothing
    /// new to do for a while either, what starting took is given back: room for more
    /// records, and pages of the heap and of this program.
    pub fn rest(&mut self) {
        self.cache.release_writes(RELEASED_PAGES);
        if self.settled + SETTLING > self.translated {
            return;
        }
        let now = Instant::now();
        let (translated, since) = self.seen.get_or_insert((self.translated, now));
        if *translated + FEW < self.translated {
            self.seen = Some((self.translated, now));
        } else if now.duration_since(*since) > QUIET {
            self.seen = None;
            self.settled = self.translated;
            self.list.shrink_to_fit();
            self.links.shrink_to_fit();
            self.map.shrink();
            host_sys::release_free_memory();
            host_sys::release_program();
        }
    }

    /// Drop every block, and what memory they took: most of it was for code that
    /// runs once, while a guest starts.
    pub fn drop_all(&mut self) {
        self.list = Vec::new();
        self.first_in_page.clear();
        self.map = InstructionMap::default();
        self.seconds = AddressMap::default();
        self.stubs = AddressMap::default();
        self.origins = AddressMap::default();
        self.foresight = Foresight::default();
        self.crossings = Foresight::default();
        self.by_key.clear();
        self.by_page = AddressMap::default();
        self.vigilant = Vec::new();
        self.links = Vec::new();
        host_sys::release_free_memory();
        self.cache.truncate(self.floor);
        self.flushes += 1;
    }

    /// Number of a block's link, by the one its stub names.
    pub fn link(&self, id: u32, of_block: u8) -> u32 {
        self.get(id).links + u32::from(of_block)
    }

    /// Where a link leads, and what the block there may take for granted.
    pub fn link_target(&self, link: u32) -> Option<(u64, Variant)> {
        let l = self.links.get(link as usize)?.link();
        Some((l.target, l.variant))
    }

    /// Make a link jump straight to a block; `space` is the number of the current
    /// address space, for links that depend on it.
    pub fn connect(&mut self, link: u32, to: u32, space: u32) {
        let Some(l) = self.links.get(link as usize).map(LinkRecord::link) else { return };
        if let Some(g) = l.guard {
            self.cache.patch_u32(g, space);
        }
        let b = &self.list[to as usize];
        let entry = if l.forward { b.inner() } else { b.entry() };
        if l.call {
            self.put_jump(l.patch, entry);
        } else {
            self.cache.patch_u32(l.patch, entry.wrapping_sub(l.patch + 4));
        }
    }

    /// Drop the blocks of a page: their entries lead out, whoever still jumps there.
    pub fn drop_page(&mut self, page: u32) {
        for id in self.by_page.remove(&page).unwrap_or_default().ids {
            self.kill(id);
        }
    }

    /// A page of shared code is not mapped where it was: drop the blocks made there.
    pub fn drop_mapping(&mut self, page: LostPage) {
        self.drop_page(page.ram);
        let mut vigilant = std::mem::take(&mut self.vigilant);
        vigilant.retain(|id| {
            if self.get(*id).va() >> 12 == page.linear {
                self.kill(*id);
            }
            !self.get(*id).dead()
        });
        self.vigilant = vigilant;
    }

    /// Lines (of 64 bytes) of a page have changed, and with that its generation:
    /// drop the blocks made from them.
    pub fn drop_lines(&mut self, page: u32, lines: u64, generation: u32) {
        let Some(p) = self.by_page.get_mut(&page) else { return };
        match generation.wrapping_sub(p.generation) as i32 {
            // The blocks were made after that.
            ..=0 => return,
            1 if lines != u64::MAX => {}
            _ => return self.drop_page(page),
        }
        p.generation = generation;
        let list = &self.list;
        let stale: Vec<u32> = p.ids.extract_if(.., |id| list[*id as usize].lines() & lines != 0).collect();
        for id in stale {
            self.kill(id);
        }
    }

    /// A straddling block is good for this code mapping.
    pub fn set_guard(&mut self, id: u32, space: u32) {
        if let Some(at) = self.seconds.get(&id).and_then(|s| s.guard) {
            self.cache.patch_u32(at, space);
        }
    }

    /// A host fault, mostly of an operand that crosses a page: if that happens often, the
    /// block is made again so that it finds out by itself.
    pub fn faulted(&mut self, id: u32) {
        let va = self.get(id).va();
        if self.crossings.allows(va) && !self.crossings.wrong(va, Instant::now()) {
            self.kill(id);
        }
    }

    /// Drop one block.
    pub fn kill(&mut self, id: u32) {
        let b = &mut self.list[id as usize];
        if b.dead() {
            return;
        }
        b.die();
        // Vigilant blocks end with a call.
        self.returns_lost |= !b.vigilant();
        // To the attention stub at the block's start.
        let (start, entry, inner, again) = (b.start, b.entry(), b.inner(), b.again());
        self.put_jump(entry, start);
        self.put_jump(inner, start);
        if let Some(again) = again {
            self.put_jump(again, start);
        }
    }

    /// Replace five bytes of code by JMP rel32.
    fn put_jump(&mut self, at: u32, to: u32) {
        self.cache.patch_u8(at, 0xe9);
        self.cache.patch_u32(at + 1, to.wrapping_sub(at + 5));
    }

    /// Drop the blocks of pages whose generation is no longer the one they were
    /// made from.
    pub fn drop_changed(&mut self, generation: impl Fn(u32) -> u32) {
        let changed = |(page, p): (&u32, &PageBlocks)| (generation(*page) != p.generation).then_some(*page);
        for page in self.by_page.iter().filter_map(changed).collect::<Vec<_>>() {
            self.drop_page(page);
        }
    }

    /// Guest address of the instruction entered at a cache offset (of an entry or
    /// of an instruction's first byte).
    pub fn guest_address(&self, at: u32) -> u64 {
        match self.instruction_at(self.address(at)) {
            Some((id, i)) => self.linear(id, i),
            None => {
                let block = self.last_before(at).map(|id| self.get(id));
                block.map_or(0, Block::va)
            }
        }
    }

    /// A dead block's entry leads to the block that replaces it.
    pub fn forward(&mut self, dead: u32, to: u32) {
        let (from, to) = (&self.list[dead as usize], &self.list[to as usize]);
        let (entry, inner, again) = (from.entry(), from.inner(), from.again());
        let (entry_to, inner_to) = (to.entry(), to.inner());
        // Where both are one, the look at the token must not be lost.
        self.put_jump(inner, inner_to);
        self.put_jump(entry, entry_to);
        if let Some(again) = again {
            self.put_jump(again, entry_to);
        }
    }

    /// The same for a block with the same key: it inherits what led to the dead one.
    pub fn replace(&mut self, dead: u32, by: u32) {
        self.forward(dead, by);
        let first = self.origins.remove(&dead).unwrap_or(dead);
        self.forward(first, by);
        self.origins.insert(by, first);
        if let Some(s) = self.stubs.remove(&dead) {
            let entry = self.list[by as usize].entry();
            self.cache.patch_u32(s.jump + 1, entry.wrapping_sub(s.jump + 5));
            self.stubs.insert(by, s);
        }
    }

    /// What the jump cache holds for a block: code that checks the target and its
    /// class (and, unless it is shared, the address space) and jumps to it.
    pub fn jump_stub(&mut self, id: u32, space: u32) -> Option<u64> {
        let b = &self.list[id as usize];
        let (shared, class) = (b.mode().shares(b.va()), b.mode().class());
        if let Some(s) = self.stubs.get(&id).filter(|s| shared || s.space == space) {
            return Some(self.address(s.at));
        }
        let (va, entry) = (b.va(), b.entry());
        let at = self.cache.next_offset();
        let mut e = Emitter::with_room(STUB_CODE);
        match i32::try_from(va.wrapping_neg() as i64) {
            Ok(d) => e.lea(host::TEMP, Mem::base(host::ADDRESS, d)),
            Err(_) => {
                e.mov_imm(host::TEMP, va.wrapping_neg());
                e.lea(host::TEMP, Mem::indexed(host::TEMP, host::ADDRESS, 0));
            }
        }
        let right = e.jrcxz();
        e.branch(&[0xe9], at, self.thunks.indirect, &[]);
        let ok = e.land_short(right);
        debug_assert!(ok);
        // Shared code: the class must be that of now; other code: the code mapping too.
        if !shared {
            e.load32(host::TEMP, Mem::gs(crate::layout::gs!(space)));
            e.lea32(host::TEMP, Mem::base(host::TEMP, space as i32));
        } else {
            e.load32(host::TEMP, Mem::gs(crate::layout::gs!(class)));
            e.lea32(host::TEMP, Mem::base(host::TEMP, -(class as i32)));
        }
        let right = e.jrcxz();
        e.branch(&[0xe9], at, self.thunks.indirect, &[]);
        let ok = e.land_short(right);
        debug_assert!(ok);
        e.branch(&[0xe9], at, entry, &[]);
        let offset = self.cache.append(e.code())?;
        let jump = offset + (e.len() - 5) as u32;
        self.stubs.insert(id, Stub { at: offset, jump, space });
        Some(self.address(offset))
    }
}
