//! Numbers of virtio 1.2 section 5.1.

/// Feature bits (5.1.3).
pub(crate) mod feature {
    pub(crate) const CSUM: u64 = 1 << 0;
    pub(crate) const GUEST_CSUM: u64 = 1 << 1;
    pub(crate) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub(crate) const MTU: u64 = 1 << 3;
    pub(crate) const MAC: u64 = 1 << 5;
    pub(crate) const GUEST_TSO4: u64 = 1 << 7;
    pub(crate) const GUEST_TSO6: u64 = 1 << 8;
    pub(crate) const GUEST_ECN: u64 = 1 << 9;
    pub(crate) const GUEST_UFO: u64 = 1 << 10;
    pub(crate) const HOST_TSO4: u64 = 1 << 11;
    pub(crate) const HOST_TSO6: u64 = 1 << 12;
    pub(crate) const HOST_ECN: u64 = 1 << 13;
    pub(crate) const HOST_UFO: u64 = 1 << 14;
    pub(crate) const MRG_RXBUF: u64 = 1 << 15;
    pub(crate) const STATUS: u64 = 1 << 16;
    pub(crate) const CTRL_VQ: u64 = 1 << 17;
    pub(crate) const CTRL_RX: u64 = 1 << 18;
    pub(crate) const CTRL_VLAN: u64 = 1 << 19;
    pub(crate) const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub(crate) const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub(crate) const MQ: u64 = 1 << 22;
    pub(crate) const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub(crate) const GUEST_USO4: u64 = 1 << 54;
    pub(crate) const GUEST_USO6: u64 = 1 << 55;
    pub(crate) const HOST_USO: u64 = 1 << 56;

    /// Those that [`super::command::GUEST_OFFLOADS_SET`] switches (5.1.6.5.6.1).
    pub(crate) const GUEST_OFFLOADS: u64 =
        GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;
}

/// Bits of the status field (5.1.4).
pub(crate) mod status {
    pub(crate) const LINK_UP: u16 = 1;
    pub(crate) const ANNOUNCE: u16 = 2;
}

/// Classes of control commands, and the commands in them (5.1.6.5).
pub(crate) mod command {
    pub(crate) const RX: u8 = 0;
    pub(crate) const RX_PROMISC: u8 = 0;
    pub(crate) const RX_ALLMULTI: u8 = 1;
    pub(crate) const RX_ALLUNI: u8 = 2;
    pub(crate) const RX_NOMULTI: u8 = 3;
    pub(crate) const RX_NOUNI: u8 = 4;
    pub(crate) const RX_NOBCAST: u8 = 5;
    pub(crate) const MAC: u8 = 1;
    pub(crate) const MAC_TABLE_SET: u8 = 0;
    pub(crate) const MAC_ADDR_SET: u8 = 1;
    pub(crate) const VLAN: u8 = 2;
    pub(crate) const VLAN_ADD: u8 = 0;
    pub(crate) const VLAN_DEL: u8 = 1;
    pub(crate) const ANNOUNCE: u8 = 3;
    pub(crate) const ANNOUNCE_ACK: u8 = 0;
    pub(crate) const MQ: u8 = 4;
    pub(crate) const MQ_VQ_PAIRS_SET: u8 = 0;
    pub(crate) const GUEST_OFFLOADS: u8 = 5;
    pub(crate) const GUEST_OFFLOADS_SET: u8 = 0;
}

/// Answers to control commands.
pub(crate) const OK: u8 = 0;
pub(crate) const ERR: u8 = 1;
