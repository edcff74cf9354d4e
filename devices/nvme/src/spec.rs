//! Numbers of NVM Express 1.4.

/// Page size of memory: the only one offered.
pub const PAGE: u64 = 4096;
/// Bytes of a submission queue entry.
pub const SQE_SIZE: u64 = 64;
/// Bytes of a completion queue entry.
pub const CQE_SIZE: u64 = 16;
/// The one namespace.
pub const NSID: u32 = 1;
/// Any namespace.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// Controller registers (3.1).
pub mod register {
    pub const CAP: u64 = 0x00;
    pub const VS: u64 = 0x08;
    pub const INTMS: u64 = 0x0c;
    pub const INTMC: u64 = 0x10;
    pub const CC: u64 = 0x14;
    pub const CSTS: u64 = 0x1c;
    pub const AQA: u64 = 0x24;
    pub const ASQ: u64 = 0x28;
    pub const ACQ: u64 = 0x30;
    /// Doorbells: submission tail and completion head of each queue, 4 bytes each.
    pub const DOORBELLS: u64 = 0x1000;
}

/// Version 1.4.0.
pub const VERSION: u32 = 0x0001_0400;

/// Controller configuration (3.1.5).
pub mod cc {
    pub const ENABLE: u32 = 1;
    /// Command set, page size, arbitration: what is supported has all zeroes.
    pub const MODES: u32 = 0x3ff0;
    pub const SHUTDOWN: u32 = 3 << 14;
    /// I/O queue entry sizes and the above.
    pub const WRITABLE: u32 = 0x00ff_fff1;
}

/// Controller status (3.1.6).
pub mod csts {
    pub const READY: u32 = 1;
    pub const FATAL: u32 = 1 << 1;
    pub const SHUTDOWN_PROCESSING: u32 = 1 << 2;
    pub const SHUTDOWN_COMPLETE: u32 = 2 << 2;
    pub const SHUTDOWN: u32 = 3 << 2;
}

/// Admin opcodes (5).
pub mod admin {
    pub const DELETE_SQ: u8 = 0x00;
    pub const CREATE_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_CQ: u8 = 0x04;
    pub const CREATE_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNC_EVENT: u8 = 0x0c;
}

/// NVM opcodes (6).
pub mod nvm {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Feature identifiers (5.21.1).
pub mod feature {
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER_MANAGEMENT: u8 = 0x02;
    pub const TEMPERATURE: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const WRITE_CACHE: u8 = 0x06;
    pub const QUEUES: u8 = 0x07;
    pub const COALESCING: u8 = 0x08;
    pub const VECTOR: u8 = 0x09;
    pub const ATOMICITY: u8 = 0x0a;
    pub const EVENTS: u8 = 0x0b;
}

/// A command's outcome: status code type in bits 10-8, code in bits 7-0 (4.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    pub const SUCCESS: Self = Self(0x000);
    pub const INVALID_OPCODE: Self = Self(0x001);
    pub const INVALID_FIELD: Self = Self(0x002);
    pub const DATA_TRANSFER: Self = Self(0x004);
    pub const INTERNAL: Self = Self(0x006);
    pub const INVALID_NAMESPACE: Self = Self(0x00b);
    pub const PRP_OFFSET: Self = Self(0x013);
    pub const WRITE_PROTECTED: Self = Self(0x020);
    pub const LBA_RANGE: Self = Self(0x080);
    pub const CAPACITY: Self = Self(0x081);
    pub const CQ_INVALID: Self = Self(0x100);
    pub const QUEUE_ID: Self = Self(0x101);
    pub const QUEUE_SIZE: Self = Self(0x102);
    pub const EVENT_LIMIT: Self = Self(0x105);
    pub const VECTOR: Self = Self(0x108);
    pub const LOG_PAGE: Self = Self(0x109);
    pub const QUEUE_DELETION: Self = Self(0x10c);
    pub const NOT_SAVEABLE: Self = Self(0x10d);
    pub const NOT_CHANGEABLE: Self = Self(0x10e);
    pub const WRITE_FAULT: Self = Self(0x280);
    pub const READ_ERROR: Self = Self(0x281);

    /// The same would fail again.
    const DO_NOT_RETRY: u16 = 1 << 14;

    /// The status field of a completion queue entry, without its phase.
    pub fn field(self) -> u16 {
        match self {
            Self::SUCCESS => 0,
            // What a host with more room, or a healthy medium, would do.
            Self::CAPACITY | Self::INTERNAL | Self::WRITE_FAULT | Self::READ_ERROR => self.0,
            _ => self.0 | Self::DO_NOT_RETRY,
        }
    }
}
