//! Which frames the driver wants (virtio 1.2 sections 5.1.6.5.1 to 5.1.6.5.3).

use port::MacAddress;
use serde::{Deserialize, Serialize};

/// Addresses of each table. A longer one counts as all addresses.
pub(crate) const MAX_TABLE: usize = 64;
/// Words of a bit for each VLAN.
const VLAN_WORDS: usize = 4096 / 64;
/// Tag protocol of IEEE 802.1Q.
const TAGGED: [u8; 2] = [0x81, 0x00];

/// One address table; `None`: longer than [`MAX_TABLE`].
type Table = Option<Vec<[u8; 6]>>;

/// Which frames the driver wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filter {
    pub(crate) mac: [u8; 6],
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    pub(crate) all_unicast: bool,
    pub(crate) no_multicast: bool,
    pub(crate) no_unicast: bool,
    pub(crate) no_broadcast: bool,
    unicast: Table,
    multicast: Table,
    /// A bit for each VLAN that is wanted.
    vlans: Vec<u64>,
    /// The driver filters VLANs at all.
    pub(crate) by_vlan: bool,
}

impl Filter {
    /// After a reset: everything, until the driver says otherwise.
    pub(crate) fn new(mac: MacAddress) -> Self {
        Filter {
            mac: mac.0,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Some(Vec::new()),
            multicast: Some(Vec::new()),
            vlans: vec![0; VLAN_WORDS],
            by_vlan: false,
        }
    }

    /// Whether what a stream says can be of a filter.
    pub(crate) fn is_sound(&self) -> bool {
        let short = |t: &Table| t.as_ref().is_none_or(|t| t.len() <= MAX_TABLE);
        self.vlans.len() == VLAN_WORDS && short(&self.unicast) && short(&self.multicast)
    }

    pub(crate) fn set_tables(&mut self, unicast: Table, multicast: Table) {
        (self.unicast, self.multicast) = (unicast, multicast);
    }

    /// Want a VLAN, or no longer; false if there is none of this number.
    pub(crate) fn set_vlan(&mut self, vlan: u16, wanted: bool) -> bool {
        let Some(word) = self.vlans.get_mut(usize::from(vlan / 64)) else { return false };
        let bit = 1 << (vlan % 64);
        *word = if wanted { *word | bit } else { *word & !bit };
        true
    }

    /// Whether the driver wants a frame, given its beginning.
    pub(crate) fn wants(&self, frame: &[u8]) -> bool {
        let Some(destination) = frame.first_chunk::<6>() else { return false };
        // All is all: tagged frames too (virtio 1.2, 5.1.6.5.1).
        if self.promiscuous {
            return true;
        }
        if self.by_vlan && frame.get(12..14) == Some(&TAGGED) {
            let tag = frame.get(14..16).map_or(0, |t| u16::from(t[0] & 15) << 8 | u16::from(t[1]));
            let word = self.vlans.get(usize::from(tag / 64)).copied().unwrap_or(0);
            if word & 1 << (tag % 64) == 0 {
                return false;
            }
        }
        let listed = |table: &Table| table.as_ref().is_none_or(|t| t.contains(destination));
        if *destination == MacAddress::BROADCAST.0 {
            !self.no_broadcast
        } else if MacAddress(*destination).is_multicast() {
            !self.no_multicast && (self.all_multicast || listed(&self.multicast))
        } else {
            !self.no_unicast && (self.all_unicast || *destination == self.mac || listed(&self.unicast))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];

    #[test]
    fn each_mode_lets_through_what_it_says() {
        let check = |what: &str, change: &dyn Fn(&mut Filter), expect: [bool; 4]| {
            let mut filter = Filter::new(OWN);
            filter.promiscuous = false;
            change(&mut filter);
            let wanted =
                [OWN.0, OTHER, GROUP, [0xff; 6]].map(|to| filter.wants(&[&to[..], &[0; 54]].concat()));
            assert_eq!(wanted, expect, "{what}: own, other, group, broadcast");
        };
        check("promiscuous", &|f| f.promiscuous = true, [true; 4]);
        check("nothing said", &|_| (), [true, false, false, true]);
        check("all multicast", &|f| f.all_multicast = true, [true, false, true, true]);
        check("all unicast", &|f| f.all_unicast = true, [true, true, false, true]);
        check("no broadcast", &|f| f.no_broadcast = true, [true, false, false, false]);
        check("no unicast", &|f| f.no_unicast = true, [false, false, false, true]);
        check("tables", &|f| f.set_tables(Some(vec![OTHER]), Some(vec![GROUP])), [true; 4]);
        check("full tables", &|f| f.set_tables(None, None), [true; 4]);
        check(
            "no multicast",
            &|f| (f.set_tables(None, None), f.no_multicast = true).1,
            [true, true, false, true],
        );
    }

    #[test]
    fn tagged_frames_are_wanted_by_their_vlan() {
        let mut filter = Filter::new(OWN);
        filter.by_vlan = true;
        assert!(filter.wants(&[&OWN.0[..], &OTHER, &TAGGED, &[0x20, 5], &[0; 44]].concat()), "promiscuous");
        filter.promiscuous = false;
        let frame = |tag: [u8; 2]| [&OWN.0[..], &OTHER, &TAGGED, &tag, &[0; 44]].concat();
        assert!(!filter.wants(&frame([0x20, 5])));
        assert!(filter.set_vlan(5, true) && !filter.set_vlan(4096, true));
        assert!(filter.wants(&frame([0x20, 5])) && !filter.wants(&frame([0x2f, 5])));
        assert!(filter.set_vlan(5, false) && !filter.wants(&frame([0x20, 5])));
    }
}
