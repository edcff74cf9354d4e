//! Random programs: functions, calls, loops, faults, page-table changes,
//! excursions to ring 3, code that changes itself; always with an end.
//!
//! [`generate`] makes a [`Program`] from a seed, [`emit`] code from a program,
//! [`image`] a machine's memory and state; [`shrink`] drops what a difference
//! does not need.

pub mod emit;
mod generate;
mod handlers;
pub mod image;
#[allow(missing_docs, reason = "the names and the module's text say it")]
pub mod layout;
mod shrink;

pub use generate::generate;
pub use shrink::shrink;

/// What surrounds a program's code.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Of data and registers.
    pub seed: u64,
    /// Exceptions until the program is ended.
    pub fuel: u64,
    /// CR4 bits besides those every program needs.
    pub cr4: u64,
    /// SFMASK.
    pub syscall_mask: u64,
    /// The supervisor's pages are global.
    pub global: bool,
    /// The supervisor's functions run at low addresses.
    pub low_supervisor: bool,
}

/// A program.
#[derive(Debug, Clone)]
pub struct Program {
    /// What surrounds it.
    pub setup: Setup,
    /// The supervisor's main program: an exception without a way on goes to the next.
    pub segments: Vec<Vec<Item>>,
    /// Functions; each calls only later ones.
    pub functions: Vec<Function>,
}

/// A function.
#[derive(Debug, Clone)]
pub struct Function {
    /// Runs in ring 3.
    pub user: bool,
    /// Bytes of padding in front.
    pub padding: u8,
    /// Quadwords that its RET removes.
    pub arguments: u16,
    /// Returns to where [`layout::variable::RETARGET`] says, if that is not 0.
    pub retargets: bool,
    /// Keeps its stack pointer here.
    pub slot: u16,
    /// What it does.
    pub body: Vec<Item>,
}

/// One thing that a program does.
#[derive(Debug, Clone)]
pub enum Item {
    /// Instructions that need no label.
    Bytes(Vec<u8>),
    /// Jcc over `body`.
    If {
        /// Condition code, 0-15.
        condition: u8,
        /// What is jumped over.
        body: Vec<Item>,
    },
    /// `body` so many times, counted in a slot.
    Loop {
        /// Times, at least 1.
        times: u32,
        /// Slot of the counter.
        slot: u16,
        /// What is repeated.
        body: Vec<Item>,
    },
    /// One of four arms, chosen by a slot that counts, through a table of addresses.
    Switch {
        /// Slot of the counter.
        slot: u16,
        /// Arms.
        arms: [Vec<Item>; 4],
    },
    /// Call a function.
    Call {
        /// Its number.
        to: usize,
        /// How.
        how: Call,
        /// A slot for addresses.
        slot: u16,
    },
    /// Call itself `depth` times, with `body` at each.
    Recurse {
        /// Depth.
        depth: u32,
        /// Slot of the counter.
        slot: u16,
        /// Through a register.
        indirect: bool,
        /// What is done at each level.
        body: Vec<Item>,
    },
    /// Remember stack and place, then `body`.
    SetJump {
        /// What may jump back.
        body: Vec<Item>,
    },
    /// Go to where the last [`Item::SetJump`] was, once.
    LongJump,
    /// `body` on another stack.
    OtherStack {
        /// Slot that keeps the stack pointer.
        slot: u16,
        /// Bytes that the other stack is off.
        off: u8,
        /// What runs there.
        body: Vec<Item>,
    },
    /// RET, RET far or IRET to the next instruction.
    Return(Return),
    /// MOV register, constant; the constant has a name.
    Site {
        /// Name.
        number: u16,
        /// Register, 0-7.
        register: u8,
    },
    /// Store to a site's constant.
    Patch {
        /// The site.
        number: u16,
        /// What is stored.
        value: u32,
        /// How.
        how: Patch,
    },
    /// A quadword beside the code that is incremented.
    Beside,
    /// From the supervisor: run a function in ring 3 until it leaves.
    User {
        /// The function.
        to: usize,
        /// RFLAGS there.
        flags: u64,
        /// By SYSRET instead of IRET.
        sysret: bool,
        /// Leave by INT instead of SYSCALL.
        by_interrupt: bool,
        /// Bytes that the stack is off.
        off: u8,
    },
    /// Call what a window shows.
    Window {
        /// Linear address.
        at: u64,
    },
    /// A breakpoint in DR0 on the next instruction but one, then `body`.
    Break {
        /// What runs with the breakpoint set.
        body: Vec<Item>,
    },
}

/// Ways to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// CALL rel32.
    Direct,
    /// CALL through this register.
    Register(u8),
    /// CALL through memory.
    Memory,
    /// The return address is pushed, then JMP.
    Jump,
    /// Both addresses are pushed, then RET.
    Return,
    /// The function's other mapping (supervisor only).
    Alias,
    /// The callee returns elsewhere.
    Retargeted,
}

/// Ways to return that no call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// RET.
    Near,
    /// RET with an immediate.
    NearImmediate,
    /// Far RET to the same privilege.
    Far,
    /// IRET to the same privilege.
    Interrupt,
}

/// Ways to change code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    /// MOV dword through the mapping that runs.
    Dword,
    /// MOV byte.
    Byte,
    /// XCHG through the other mapping (supervisor only).
    OtherMapping,
    /// MOV through the 2 MiB page (supervisor only).
    LargePage,
    /// REP STOSB.
    String,
    /// INC of the constant.
    Increment,
}
