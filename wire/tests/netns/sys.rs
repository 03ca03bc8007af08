//! Filters of system calls (`seccomp(2)`), in the classic BPF of `linux/filter.h`.
#![expect(
    unsafe_code,
    reason = "filters, and the calls that wait for their verdict, have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::{mem, slice};

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long, sock_filter,
    sock_fprog,
};

/// A system call that is answered with an error.
pub(crate) struct Filter {
    /// Its number.
    pub(crate) call: c_long,
    /// Arguments (by number) whose lower 32 bits must have these values.
    pub(crate) equal: Vec<(u32, u32)>,
    /// An argument that must have one of these bits.
    pub(crate) any: Option<(u32, u32)>,
    /// The error.
    pub(crate) errno: i32,
}

/// From now on the kernel refuses this to the calling thread, and to the threads that it starts.
pub(crate) fn refuse(filter: &Filter) {
    let verdict = libc::SECCOMP_RET_ERRNO | filter.errno.cast_unsigned();
    let result = install(&compile(filter, verdict), 0);
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// From now on the calling thread, and those that it starts, wait in `sendmsg(2)` for what [`judge`] says.
pub(crate) fn intercept_sending() -> OwnedFd {
    let every = Filter {
        call: libc::SYS_sendmsg,
        equal: Vec::new(),
        any: None,
        errno: 0,
    };
    let program = compile(&every, libc::SECCOMP_RET_USER_NOTIF);
    let listener = install(&program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    let listener = i32::try_from(listener).expect("a descriptor");
    assert!(listener >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(listener) }
}

/// Takes one waiting call of a thread of this process, shows `verdict` its control messages, and lets it go on (`None`)
/// or fail with an error number.
pub(crate) fn judge(
    listener: &OwnedFd,
    verdict: impl FnOnce(&[u8]) -> Option<i32>,
) -> io::Result<()> {
    // SAFETY: both are plain data that may be all zero; the kernel demands that of the first.
    let (mut call, mut answer): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    // SAFETY: the kernel writes one `seccomp_notif`, which outlives the call.
    let taken = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut call,
        )
    };
    if taken < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the pointers are those of a thread of this process, which waits inside `sendmsg` with a message and
    // control messages that outlive its call, until we answer below.
    let control = unsafe {
        let message = &*(call.data.args[1] as *const libc::msghdr);
        match message.msg_controllen {
            0 => &[],
            length => slice::from_raw_parts(message.msg_control.cast::<u8>(), length),
        }
    };
    answer.id = call.id;
    match verdict(control) {
        Some(errno) => answer.error = -errno,
        None => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    }
    // SAFETY: the kernel reads one `seccomp_notif_resp`, which outlives the call.
    let answered = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut answer,
        )
    };
    if answered < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn install(program: &[sock_filter], flags: libc::c_ulong) -> c_long {
    let program = sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: this call takes integers.
    let promised = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(promised, 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel reads one `sock_fprog`, whose instructions outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    }
}

/// Every test that fails jumps to the end, which allows.
fn compile(filter: &Filter, verdict: u32) -> Vec<sock_filter> {
    let mut tests = vec![(0, BPF_JEQ, filter.call as u32)];
    // `struct seccomp_data`: number, architecture, instruction pointer, and six arguments of 64 bits from byte 16 on;
    // the lower half comes first on the little-endian machines that we run on.
    let place = |argument: u32| 16 + 8 * argument;
    tests.extend(
        filter
            .equal
            .iter()
            .map(|(argument, value)| (place(*argument), BPF_JEQ, *value)),
    );
    tests.extend(
        filter
            .any
            .map(|(argument, bits)| (place(argument), BPF_JSET, bits)),
    );
    let mut program = Vec::new();
    for (number, (offset, test, value)) in tests.iter().enumerate() {
        let left = tests.len() - number - 1;
        program.push(instruction(BPF_LD | BPF_W | BPF_ABS, *offset, 0));
        // Over the remaining tests, two instructions each, and the verdict.
        let otherwise = u8::try_from(2 * left + 1).expect("few tests");
        program.push(instruction(BPF_JMP | test | BPF_K, *value, otherwise));
    }
    program.push(instruction(BPF_RET | BPF_K, verdict, 0));
    program.push(instruction(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    program
}

fn instruction(code: u32, k: u32, otherwise: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: otherwise,
        k,
    }
}
