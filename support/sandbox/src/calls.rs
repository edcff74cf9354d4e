//! System calls, by seccomp (seccomp(2)).

use std::collections::BTreeMap;

use libc as c;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use crate::SandboxError;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What a running machine does, whatever the arguments.
const ALLOWED: &[i64] = &[
    // Descriptors that are open.
    c::SYS_read,
    c::SYS_write,
    c::SYS_readv,
    c::SYS_writev,
    c::SYS_pread64,
    c::SYS_pwrite64,
    c::SYS_preadv,
    c::SYS_pwritev,
    c::SYS_preadv2,
    c::SYS_pwritev2,
    c::SYS_lseek,
    c::SYS_close,
    c::SYS_dup,
    c::SYS_dup3,
    c::SYS_fstat,
    c::SYS_newfstatat,
    c::SYS_statx,
    c::SYS_fstatfs,
    c::SYS_fsync,
    c::SYS_fdatasync,
    c::SYS_ftruncate,
    c::SYS_fallocate,
    // Rings are made before, and good for reads and writes only; no others can be.
    c::SYS_io_uring_enter,
    c::SYS_flock,
    c::SYS_ppoll,
    c::SYS_pselect6,
    c::SYS_epoll_create1,
    c::SYS_epoll_ctl,
    c::SYS_epoll_pwait,
    c::SYS_eventfd2,
    c::SYS_pipe2,
    c::SYS_timerfd_create,
    c::SYS_timerfd_settime,
    // Sockets that are open: the control socket's connections.
    c::SYS_accept,
    c::SYS_accept4,
    c::SYS_sendto,
    c::SYS_sendmsg,
    c::SYS_recvfrom,
    c::SYS_recvmsg,
    c::SYS_shutdown,
    c::SYS_getsockname,
    c::SYS_getpeername,
    c::SYS_getsockopt,
    c::SYS_setsockopt,
    // Memory; mapping, protecting and advising have conditions below.
    c::SYS_munmap,
    c::SYS_mremap,
    c::SYS_brk,
    c::SYS_memfd_create,
    c::SYS_membarrier,
    c::SYS_mincore,
    // Threads.
    c::SYS_futex,
    c::SYS_set_robust_list,
    c::SYS_rseq,
    c::SYS_sched_yield,
    c::SYS_sched_getaffinity,
    c::SYS_gettid,
    c::SYS_getpid,
    c::SYS_exit,
    c::SYS_exit_group,
    c::SYS_restart_syscall,
    // Answered by CLONE3_IS_OLD.
    c::SYS_clone3,
    // Signals of its own.
    c::SYS_rt_sigaction,
    c::SYS_rt_sigprocmask,
    c::SYS_rt_sigreturn,
    c::SYS_rt_sigtimedwait,
    c::SYS_rt_sigpending,
    c::SYS_rt_sigsuspend,
    c::SYS_signalfd4,
    c::SYS_sigaltstack,
    // Time, chance, facts.
    c::SYS_clock_gettime,
    c::SYS_clock_getres,
    c::SYS_clock_nanosleep,
    c::SYS_nanosleep,
    c::SYS_gettimeofday,
    c::SYS_getrandom,
    c::SYS_getcpu,
    c::SYS_getrusage,
    c::SYS_sysinfo,
    c::SYS_uname,
    c::SYS_getuid,
    c::SYS_geteuid,
];

/// Those that only older architectures have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] =
    &[c::SYS_poll, c::SYS_select, c::SYS_epoll_wait, c::SYS_pipe, c::SYS_dup2, c::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// Opening and removing files, where Landlock says which.
const FILES: &[i64] = &[c::SYS_openat, c::SYS_unlinkat, c::SYS_readlinkat];
#[cfg(target_arch = "x86_64")]
const FILES_HERE: &[i64] = &[c::SYS_open, c::SYS_unlink, c::SYS_rmdir, c::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const FILES_HERE: &[i64] = &[];

/// Serving folders of the host.
const FOLDERS: &[i64] = &[
    c::SYS_openat2,
    c::SYS_getdents64,
    c::SYS_mkdirat,
    c::SYS_mknodat,
    c::SYS_symlinkat,
    c::SYS_linkat,
    c::SYS_renameat2,
    c::SYS_fchmodat,
    c::SYS_fchownat,
    c::SYS_utimensat,
    c::SYS_getxattr,
    c::SYS_setxattr,
    c::SYS_listxattr,
    c::SYS_removexattr,
    c::SYS_copy_file_range,
    c::SYS_syncfs,
    c::SYS_getegid,
];

/// What only an intruder does.
const FATAL: &[i64] = &[
    c::SYS_execve,
    c::SYS_execveat,
    c::SYS_ptrace,
    c::SYS_process_vm_readv,
    c::SYS_process_vm_writev,
    c::SYS_setuid,
    c::SYS_setgid,
    c::SYS_setresuid,
    c::SYS_setresgid,
    c::SYS_setns,
    c::SYS_unshare,
    c::SYS_mount,
    c::SYS_umount2,
    c::SYS_pivot_root,
    c::SYS_chroot,
    c::SYS_bpf,
    c::SYS_init_module,
    c::SYS_finit_module,
    c::SYS_kexec_load,
    c::SYS_reboot,
    c::SYS_keyctl,
    c::SYS_userfaultfd,
];

/// ioctls of terminals: TCGETS, TCSETS, TCSETSW, TCSETSF, TIOCGWINSZ. TIOCSTI, which
/// types at the user's shell, is not among them.
const TERMINAL: [u64; 5] = [0x5401, 0x5402, 0x5403, 0x5404, 0x5413];
/// fcntl commands: descriptors, the status flags read, locks and seals of open files. Not
/// F_SETOWN, F_SETSIG and their like, with which the kernel sends any signal to any
/// process of the user; F_SETFL has a condition of its own.
const DESCRIPTOR: [c::c_int; 8] = [
    c::F_DUPFD_CLOEXEC,
    c::F_GETFD,
    c::F_SETFD,
    c::F_GETFL,
    c::F_OFD_GETLK,
    c::F_OFD_SETLK,
    c::F_ADD_SEALS,
    c::F_GET_SEALS,
];
/// FIONBIO.
const NONBLOCKING: u64 = 0x5421;
/// Type byte of KVM's ioctls, in bits 15 to 8.
const KVM: u64 = 0xae00;
const IOCTL_TYPE: u64 = 0xff00;
/// What a thread of the C library's is made with: it shares all with its maker. No
/// namespaces, nothing traced, no descriptor of a process.
const THREAD: c::c_int = c::CLONE_VM
    | c::CLONE_FS
    | c::CLONE_FILES
    | c::CLONE_SIGHAND
    | c::CLONE_THREAD
    | c::CLONE_SYSVSEM
    | c::CLONE_SETTLS
    | c::CLONE_PARENT_SETTID
    | c::CLONE_CHILD_CLEARTID;
/// Bits of a socket's type without its flags.
const SOCKET_KIND: u64 = 0xf;
/// prctl operations: PR_SET_NAME, PR_GET_NAME, PR_SET_TIMERSLACK, PR_SET_VMA,
/// PR_GET_AUXV, by which libraries learn the page size.
const PRCTL: [u64; 5] = [15, 16, 29, 0x5356_4d41, 0x4155_5856];

/// What a machine's threads may do beside what every machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Calls {
    /// Open files, as far as [`crate::confine_files`] lets them; to be used only
    /// where that is in force.
    pub open: bool,
    /// Make sockets of the Internet families and connect them: user-mode NAT.
    pub connect: bool,
    /// Say which offloads and queues of an open tap interface are used.
    pub tap: bool,
    /// Look through folders and change what is in them; with Landlock, those that it
    /// leaves.
    pub folders: bool,
    /// Connect to Unix sockets. No file rule limits to which.
    pub unix_connect: bool,
}

/// `TUNSETOFFLOAD` and `TUNSETQUEUE`.
const TAP: [u64; 2] = [0x4004_54d0, 0x4004_54d9];

/// Leave every thread of the process, and those to come, only the system calls of
/// a running machine, and of what [`Calls`] adds.
///
/// # Errors
/// When the kernel has no seccomp or refuses the filter.
pub fn confine_calls(calls: Calls) -> Result<(), SandboxError> {
    // The first to be installed: later ones could not be.
    let errno = SeccompAction::Errno(c::ENOSYS as u32);
    apply_filter_all_threads(&compile(always(&[c::SYS_clone3]), SeccompAction::Allow, errno)?)?;
    let fatal = always(FATAL);
    apply_filter_all_threads(&compile(fatal, SeccompAction::Allow, SeccompAction::KillProcess)?)?;
    let refused = SeccompAction::Errno(c::EPERM as u32);
    apply_filter_all_threads(&compile(allowed(calls)?, refused, SeccompAction::Allow)?)?;
    Ok(())
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, SandboxError> {
    #[cfg(target_arch = "x86_64")]
    let arch = TargetArch::x86_64;
    #[cfg(target_arch = "aarch64")]
    let arch = TargetArch::aarch64;
    Ok(SeccompFilter::new(rules, otherwise, matching, arch)?.try_into()?)
}

fn always(calls: &[i64]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// Argument `n`, of which the kernel looks at 32 bits, has this value under this mask.
fn bits(n: u8, mask: u64, value: u64) -> Result<SeccompCondition, SandboxError> {
    Ok(SeccompCondition::new(n, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)?)
}

/// Argument `n`, of which the kernel looks at 32 bits, is this.
fn is(n: u8, value: u64) -> Result<SeccompCondition, SandboxError> {
    bits(n, u32::MAX.into(), value)
}

/// Argument `n` is a null pointer: all its 64 bits are compared.
fn is_null(n: u8) -> Result<SeccompCondition, SandboxError> {
    Ok(SeccompCondition::new(n, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?)
}

fn rule<const N: usize>(conditions: [SeccompCondition; N]) -> Result<SeccompRule, SandboxError> {
    Ok(SeccompRule::new(conditions.into())?)
}

/// fcntl(2): no signals for what happens to a file.
fn descriptors() -> Result<Vec<SeccompRule>, SandboxError> {
    let mut rules = vec![rule([is(1, c::F_SETFL as u64)?, bits(2, c::O_ASYNC as u64, 0)?])?];
    for command in DESCRIPTOR {
        rules.push(rule([is(1, command as u64)?])?);
    }
    Ok(rules)
}

/// Internet streams and datagrams: TCP, UDP and echo requests. No other protocol of these
/// families, which Landlock's network rules would not know, and no packet, raw or netlink
/// sockets.
fn internet_sockets() -> Result<Vec<SeccompRule>, SandboxError> {
    let kinds = [
        (c::SOCK_STREAM, [0, c::IPPROTO_TCP].as_slice()),
        (c::SOCK_DGRAM, [0, c::IPPROTO_UDP, c::IPPROTO_ICMP, c::IPPROTO_ICMPV6].as_slice()),
    ];
    let mut rules = Vec::new();
    for family in [c::AF_INET, c::AF_INET6] {
        for (kind, protocols) in kinds {
            for protocol in protocols {
                let kind = bits(1, SOCKET_KIND, kind as u64)?;
                rules.push(rule([is(0, family as u64)?, kind, is(2, *protocol as u64)?])?);
            }
        }
    }
    Ok(rules)
}

/// The allow-list.
fn allowed(calls: Calls) -> Result<Rules, SandboxError> {
    let mut rules = always(ALLOWED);
    rules.append(&mut always(ALLOWED_HERE));
    if calls.folders {
        rules.append(&mut always(FOLDERS));
    }
    if calls.open || calls.folders {
        rules.append(&mut always(FILES));
        rules.append(&mut always(FILES_HERE));
    }
    let (exec, write) = (c::PROT_EXEC as u64, c::PROT_WRITE as u64);
    // Memory becomes executable by mprotect alone, as the translator's second
    // mapping does, and never where it can be written.
    let data = rule([bits(2, exec, 0)?])?;
    let code = rule([bits(2, exec | write, exec)?])?;
    rules.insert(c::SYS_mmap, vec![data.clone()]);
    rules.insert(c::SYS_mprotect, vec![data, code]);
    // Not those that take the host's memory away from all.
    let advice =
        |op, value: c::c_int| rule([SeccompCondition::new(2, SeccompCmpArgLen::Dword, op, value as u64)?]);
    let harmless =
        vec![advice(SeccompCmpOp::Lt, c::MADV_HWPOISON)?, advice(SeccompCmpOp::Gt, c::MADV_SOFT_OFFLINE)?];
    rules.insert(c::SYS_madvise, harmless);
    // Threads, no processes; signals to itself only. The kernel ignores CLONE_DETACHED,
    // with which musl makes them.
    let thread = bits(0, u64::from(u32::MAX) & !(c::CLONE_DETACHED as u64), THREAD as u64)?;
    rules.insert(c::SYS_clone, vec![rule([thread])?]);
    rules.insert(c::SYS_tgkill, vec![rule([is(0, std::process::id().into())?])?]);
    // Its own limits are read, not set; those of others neither.
    rules.insert(c::SYS_prlimit64, vec![rule([is(0, 0)?, is_null(2)?])?]);
    rules.insert(c::SYS_fcntl, descriptors()?);
    let mut controls = vec![rule([bits(1, IOCTL_TYPE, KVM)?])?, rule([is(1, NONBLOCKING)?])?];
    for number in TERMINAL {
        controls.push(rule([is(1, number)?])?);
    }
    if calls.tap {
        for number in TAP {
            controls.push(rule([is(1, number)?])?);
        }
    }
    rules.insert(c::SYS_ioctl, controls);
    let mut sockets = Vec::new();
    if calls.unix_connect {
        sockets.push(rule([is(0, c::AF_UNIX as u64)?, bits(1, SOCKET_KIND, c::SOCK_STREAM as u64)?])?);
    }
    if calls.connect {
        sockets.append(&mut internet_sockets()?);
    }
    if !sockets.is_empty() {
        rules.insert(c::SYS_socket, sockets);
        rules.insert(c::SYS_connect, Vec::new());
    }
    let operations: Result<_, _> = PRCTL.iter().map(|op| rule([is(0, *op)?])).collect();
    rules.insert(c::SYS_prctl, operations?);
    Ok(rules)
}
