//! What is kept of each translated block, in as little memory as it takes: a
//! stock kernel's boot translates some fifty thousand.

use std::hash::Hasher;

use crate::block::{Link, Mode, Variant};
use crate::blocks::AddressHasher;

/// What identifies a block: place in RAM, linear address, mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub ram: u64,
    pub va: u64,
    pub mode: Mode,
}

impl Key {
    pub fn hash(&self) -> u64 {
        let mut h = AddressHasher::default();
        std::hash::Hash::hash(self, &mut h);
        h.finish()
    }
}

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, h: &mut H) {
        h.write_u64(self.ram ^ u64::from(self.mode.pack()) << 48);
        h.write_u64(self.va);
    }
}

/// One translated block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    va: u64,
    /// Page of the backing; the place in it is the linear address's.
    page: u32,
    /// Cache offset of the code.
    pub start: u32,
    /// Where its instructions begin in the list of all blocks'.
    map: u32,
    pub len: u16,
    /// Bytes of guest code.
    pub guest_len: u16,
    mode: u16,
    instructions: u8,
    /// Of the code: the entry, and what follows the entry's look at the token.
    entry: u8,
    inner: u8,
    /// Where it goes on when it repeats; 0 if at its entry.
    again: u8,
    pub dead: bool,
    /// The only instruction straddles two pages: see [`Second`].
    pub straddles: bool,
}

const _: () = assert!(size_of::<Block>() == 32, "one a block");

impl Block {
    /// A live block of `len` bytes at `start`; `None` if it begins with more code
    /// before its entry than a record can tell.
    pub fn new(key: &Key, start: u32, (entry, inner): (u32, u32), len: u16, guest_len: u16) -> Option<Block> {
        debug_assert_eq!(key.ram & 0xfff, key.va & 0xfff, "one place in the page");
        Some(Block {
            va: key.va,
            page: u32::try_from(key.ram >> 12).ok()?,
            start,
            map: 0,
            len,
            guest_len,
            mode: key.mode.pack(),
            instructions: 0,
            entry: u8::try_from(entry).ok()?,
            inner: u8::try_from(inner).ok()?,
            again: 0,
            dead: false,
            straddles: false,
        })
    }

    pub fn key(&self) -> Key {
        let ram = u64::from(self.page) << 12 | self.va & 0xfff;
        Key { ram, va: self.va, mode: Mode::unpack(self.mode) }
    }

    pub fn va(&self) -> u64 {
        self.va
    }

    pub fn mode(&self) -> Mode {
        Mode::unpack(self.mode)
    }

    /// Cache offset of the entry.
    pub fn entry(&self) -> u32 {
        self.start + u32::from(self.entry)
    }

    /// Cache offset of what follows the entry's look at the token.
    pub fn inner(&self) -> u32 {
        self.start + u32::from(self.inner)
    }

    /// Its branches to its own start go to this offset of the code; `None` if that is
    /// more than a record can tell.
    pub fn repeat_at(&mut self, again: Option<u32>) -> Option<()> {
        self.again = u8::try_from(again.unwrap_or(0)).ok()?;
        Some(())
    }

    /// Cache offset of where its branches to its own start go, if not to the entry.
    pub fn again(&self) -> Option<u32> {
        (self.again != 0).then(|| self.start + u32::from(self.again))
    }

    /// The lines (of 64 bytes) that this block was made from, of any of its pages, a
    /// bit each.
    pub fn lines(&self) -> u64 {
        // Few straddle: any line of either page will do.
        if self.straddles {
            return u64::MAX;
        }
        let first = self.va & 0xfff;
        let last = ((first + u64::from(self.guest_len)).saturating_sub(1) / 64).min(63);
        (u64::MAX >> (63 - last)) & (u64::MAX << (first / 64))
    }
}

/// Where a block's only instruction goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Second {
    /// Page of the backing.
    pub page: u32,
    /// Cache offset of the number of the code mapping that the block is good for, in
    /// the lower half.
    pub guard: Option<u32>,
}

/// Where instructions begin: for each, how far its host and its guest code are from
/// those of the instruction before, two bytes as a rule.
#[derive(Default)]
pub(crate) struct InstructionMap(Vec<u8>);

impl InstructionMap {
    /// Add a block's instructions, given as (host offset, guest offset) in it.
    pub fn add(&mut self, b: &mut Block, list: &[(u16, u16)]) {
        b.map = self.0.len() as u32;
        b.instructions = list.len() as u8;
        let mut before = (0, 0);
        for (host, guest) in list {
            let mut distance = host - before.0;
            while distance >= 255 {
                self.0.push(255);
                distance -= 255;
            }
            // An instruction has at most fifteen bytes.
            self.0.extend([distance as u8, (guest - before.1) as u8]);
            before = (*host, *guest);
        }
    }

    /// (host offset, guest offset) of each instruction of a block.
    pub fn of(&self, b: &Block) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut bytes = self.0.get(b.map as usize..).unwrap_or_default().iter();
        let (mut host, mut guest) = (0, 0);
        (0..b.instructions).map_while(move |_| {
            loop {
                let distance = *bytes.next()?;
                host += u32::from(distance);
                if distance < 255 {
                    break;
                }
            }
            guest += u32::from(*bytes.next()?);
            Some((host, guest))
        })
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.0.capacity()
    }
}

/// A [`Link`], packed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkRecord {
    target: u64,
    /// Cache offset to patch, below [`LinkRecord::OFFSETS`], the variant and a flag.
    patch: u32,
    guard: u32,
}

impl LinkRecord {
    /// Cache offsets are below this.
    const OFFSETS: u32 = 1 << 29;
    const VARIANT: u32 = 29;
    const FORWARD: u32 = 1 << 31;
    const NO_GUARD: u32 = u32::MAX;

    pub fn new(l: &Link) -> Self {
        debug_assert!(l.patch < Self::OFFSETS, "the cache is smaller");
        let flags = (l.variant as u32) << Self::VARIANT | if l.forward { Self::FORWARD } else { 0 };
        LinkRecord { target: l.target, patch: l.patch | flags, guard: l.guard.unwrap_or(Self::NO_GUARD) }
    }

    pub fn link(&self) -> Link {
        Link {
            target: self.target,
            variant: Variant::unpack(self.patch >> Self::VARIANT),
            forward: self.patch & Self::FORWARD != 0,
            patch: self.patch & (Self::OFFSETS - 1),
            guard: (self.guard != Self::NO_GUARD).then_some(self.guard),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(va: u64, guest_len: u16) -> Block {
        let key = Key { ram: 0x5000 | va & 0xfff, va, mode: Mode::default() };
        Block::new(&key, 0x100, (9, 19), 200, guest_len).unwrap()
    }

    #[test]
    fn a_block_keeps_its_key() {
        for mode in [
            Mode { x87: true, user: true, longest: 64, ..Mode::default() },
            Mode { sse: true, avx: true, narrow: true, fs: true, longest: 1, ..Mode::default() },
            Mode { gs: true, variant: Variant::Plain, longest: 64, ..Mode::default() },
            Mode { user: true, variant: Variant::Probing, longest: 64, ..Mode::default() },
        ] {
            let key = Key { ram: 0x12_3456_7abc, va: 0xffff_ffff_8100_0abc, mode };
            let b = Block::new(&key, 0x100, (9, 19), 200, 30).unwrap();
            assert_eq!((b.key(), b.entry(), b.inner(), b.again()), (key, 0x109, 0x113, None));
        }
    }

    #[test]
    fn lines_are_those_of_the_guest_bytes() {
        assert_eq!(block(0x1000, 64).lines(), 1);
        assert_eq!(block(0x103f, 2).lines(), 0b11);
        assert_eq!(block(0x1fc0, 64).lines(), 1 << 63);
        let straddling = Block { straddles: true, ..block(0x1ffc, 10) };
        assert_eq!(straddling.lines(), u64::MAX);
    }

    #[test]
    fn instructions_are_found_again_however_far_apart() {
        let mut map = InstructionMap::default();
        let lists: [&[(u16, u16)]; 3] =
            [&[(19, 0)], &[(19, 0), (273, 15), (528, 16), (1040, 19)], &[(254, 0), (509, 3)]];
        let mut blocks = [block(0x1000, 20); 3];
        for (b, list) in blocks.iter_mut().zip(lists) {
            map.add(b, list);
        }
        for (b, list) in blocks.iter().zip(lists) {
            let wide: Vec<_> = list.iter().map(|(h, g)| (u32::from(*h), u32::from(*g))).collect();
            assert_eq!(map.of(b).collect::<Vec<_>>(), wide);
        }
    }

    #[test]
    fn links_are_unpacked_as_they_were() {
        for (variant, forward, guard) in [
            (Variant::Usual, true, None),
            (Variant::Probing, false, Some(7)),
            (Variant::Plain, true, Some(0)),
            (Variant::Plain, false, Some(0)),
        ] {
            let l = Link { target: u64::MAX - 4, variant, forward, patch: 0x1ff_fffb, guard };
            assert_eq!(format!("{:?}", LinkRecord::new(&l).link()), format!("{l:?}"));
        }
    }
}
