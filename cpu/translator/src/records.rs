//! What is kept of each translated block, in as little memory as it takes: a
//! stock kernel's boot translates some fifty thousand.

use std::hash::Hasher;

use crate::block::{Link, Mode, Variant};
use crate::blocks::{AddressHasher, grow};

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

    /// What a block's record keeps of it: linear address, of 48 bits, and mode, and the
    /// page; none that a block has if the address is not canonical.
    pub fn place(&self) -> Place {
        let place = self.va << 16 | u64::from(self.mode.pack());
        (place, if (place as i64) >> 16 == self.va as i64 { self.ram >> 12 } else { u64::MAX })
    }
}

/// See [`Key::place`].
pub(crate) type Place = (u64, u64);

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, h: &mut H) {
        h.write_u64(self.ram ^ u64::from(self.mode.pack()) << 48);
        h.write_u64(self.va);
    }
}

/// One translated block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    /// Linear address, of 48 bits, and mode.
    place: u64,
    /// Page of the backing; the place in it is the linear address's.
    page: u32,
    /// Cache offset of the code.
    pub start: u32,
    /// Where its instructions begin in the list of all blocks'.
    map: u32,
    /// Number of its first link.
    pub links: u32,
    pub len: u16,
    /// Bytes of guest code, how often that was rewritten, and [`Block::DEAD`].
    guest_len: u16,
    instructions: u8,
    /// Of the code: the entry, and what follows the entry's look at the token.
    entry: u8,
    inner: u8,
    /// Where it goes on when it repeats; 0 if at its entry.
    again: u8,
}

const _: () = assert!(size_of::<Block>() == 32, "one a block");

impl Block {
    /// It is not to be entered any more.
    const DEAD: u16 = 1 << 15;
    /// Where the number of earlier blocks with this key is, of three bits.
    const REWRITTEN: u32 = 10;
    const LENGTH: u16 = (1 << Self::REWRITTEN) - 1;
    /// Code that has been rewritten so often becomes a vigilant block, whose number it is.
    pub const OFTEN: u16 = 3;

    pub fn dead(&self) -> bool {
        self.guest_len & Self::DEAD != 0
    }

    pub fn die(&mut self) {
        self.guest_len |= Self::DEAD;
    }

    fn guest_len(&self) -> u64 {
        (self.guest_len & Self::LENGTH).into()
    }

    /// How many blocks with this key there were before, up to [`Block::OFTEN`].
    pub fn rewritten(&self) -> u16 {
        self.guest_len >> Self::REWRITTEN & 7
    }

    pub fn set_rewritten(&mut self, times: u16) {
        let times = times.min(Self::OFTEN) << Self::REWRITTEN;
        self.guest_len = self.guest_len & (Self::DEAD | Self::LENGTH) | times;
    }

    /// It compares the guest's bytes itself: see `block::vigilant`.
    pub fn vigilant(&self) -> bool {
        self.rewritten() >= Self::OFTEN
    }

    /// A live block of `len` bytes at `start`; `None` if it begins with more code
    /// before its entry than a record can tell.
    pub fn new(
        key: &Key,
        start: u32,
        (entry, inner): (u32, u32),
        links: u32,
        len: u16,
        guest_len: u16,
    ) -> Option<Block> {
        debug_assert_eq!(key.ram & 0xfff, key.va & 0xfff, "one place in the page");
        let (place, page) = key.place();
        Some(Block {
            place,
            page: u32::try_from(page).ok()?,
            start,
            map: 0,
            links,
            len,
            guest_len: Some(guest_len).filter(|len| *len <= Self::LENGTH)?,
            instructions: 0,
            entry: u8::try_from(entry).ok()?,
            inner: u8::try_from(inner).ok()?,
            again: 0,
        })
    }

    /// Whether its key has this place.
    pub fn is_at(&self, place: Place) -> bool {
        self.place == place.0 && u64::from(self.page) == place.1
    }

    pub fn key(&self) -> Key {
        let va = self.va();
        Key { ram: u64::from(self.page) << 12 | va & 0xfff, va, mode: self.mode() }
    }

    pub fn va(&self) -> u64 {
        ((self.place as i64) >> 16) as u64
    }

    pub fn mode(&self) -> Mode {
        Mode::unpack(self.place as u16)
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

    /// The only instruction straddles two pages: see [`Second`].
    pub fn straddles(&self) -> bool {
        (self.va() & 0xfff) + self.guest_len() > 0x1000
    }

    /// The lines (of 64 bytes) that this block was made from, of any of its pages, a
    /// bit each.
    pub fn lines(&self) -> u64 {
        // Few straddle: any line of either page will do.
        if self.straddles() {
            return u64::MAX;
        }
        let first = self.va() & 0xfff;
        let last = ((first + self.guest_len()).saturating_sub(1) / 64).min(63);
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
        grow(&mut self.0, 4 * list.len());
        for (host, guest) in list {
            let mut distance = host - before.0;
            while distance >= 255 {
                self.0.push(255);
                distance -= 255;
            }
            // An instruction has at most fifteen bytes, a loop that is there twice not many.
            let guest_distance = guest.wrapping_sub(before.1) as i16;
            debug_assert!(i8::try_from(guest_distance).is_ok(), "{guest} is far from {}", before.1);
            self.0.extend([distance as u8, guest_distance as u8]);
            before = (*host, *guest);
        }
    }

    /// (host offset, guest offset) of each instruction of a block.
    pub fn of(&self, b: &Block) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut bytes = self.0.get(b.map as usize..).unwrap_or_default().iter();
        let (mut host, mut guest) = (0, 0_u32);
        (0..b.instructions).map_while(move |_| {
            loop {
                let distance = *bytes.next()?;
                host += u32::from(distance);
                if distance < 255 {
                    break;
                }
            }
            guest = guest.wrapping_add_signed((*bytes.next()? as i8).into());
            Some((host, guest))
        })
    }

    /// Give back the room for more.
    pub fn shrink(&mut self) {
        self.0.shrink_to_fit();
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
    /// Cache offset to patch, below [`LinkRecord::OFFSETS`], the variant and two flags.
    patch: u32,
    guard: u32,
}

impl LinkRecord {
    /// Cache offsets are below this.
    const OFFSETS: u32 = 1 << 28;
    const VARIANT: u32 = 28;
    const FORWARD: u32 = 1 << 30;
    const CALL: u32 = 1 << 31;
    const NO_GUARD: u32 = u32::MAX;

    pub fn new(l: &Link) -> Self {
        debug_assert!(l.patch < Self::OFFSETS, "the cache is smaller");
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let flags =
            (l.variant as u32) << Self::VARIANT | flag(l.forward, Self::FORWARD) | flag(l.call, Self::CALL);
        LinkRecord { target: l.target, patch: l.patch | flags, guard: l.guard.unwrap_or(Self::NO_GUARD) }
    }

    pub fn link(&self) -> Link {
        Link {
            target: self.target,
            variant: Variant::unpack(self.patch >> Self::VARIANT),
            forward: self.patch & Self::FORWARD != 0,
            call: self.patch & Self::CALL != 0,
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
        Block::new(&key, 0x100, (6, 12), 7, 200, guest_len).unwrap()
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
            let b = Block::new(&key, 0x100, (6, 12), 7, 200, 30).unwrap();
            assert_eq!((b.key(), b.entry(), b.inner(), b.again()), (key, 0x106, 0x10c, None));
        }
    }

    #[test]
    fn a_block_counts_how_often_its_code_was_rewritten() {
        let mut b = block(0x1000, 1000);
        for (times, counted) in [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (0, 0)] {
            b.set_rewritten(times);
            assert_eq!((b.rewritten(), b.vigilant(), b.guest_len()), (counted, counted == 3, 1000));
        }
        b.set_rewritten(2);
        b.die();
        assert_eq!((b.rewritten(), b.dead(), b.guest_len()), (2, true, 1000));
    }

    #[test]
    fn lines_are_those_of_the_guest_bytes() {
        assert_eq!(block(0x1000, 64).lines(), 1);
        assert_eq!(block(0x103f, 2).lines(), 0b11);
        assert_eq!(block(0x1fc0, 64).lines(), 1 << 63);
        assert_eq!(block(0x1ffc, 10).lines(), u64::MAX);
    }

    #[test]
    fn instructions_are_found_again_however_far_apart() {
        let mut map = InstructionMap::default();
        let lists: [&[(u16, u16)]; 3] =
            [&[(19, 0)], &[(19, 0), (273, 15), (528, 16), (1040, 19)], &[(254, 0), (509, 100), (520, 0)]];
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
        for (variant, forward, call, guard) in [
            (Variant::Usual, true, false, None),
            (Variant::Probing, false, false, Some(7)),
            (Variant::Plain, true, true, Some(0)),
            (Variant::Plain, false, true, Some(0)),
        ] {
            let l = Link { target: u64::MAX - 4, variant, forward, patch: 0x1ff_fffb, call, guard };
            assert_eq!(format!("{:?}", LinkRecord::new(&l).link()), format!("{l:?}"));
        }
    }
}
