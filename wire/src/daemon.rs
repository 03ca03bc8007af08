//! Being a daemon: going to the background, and ending when told.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

mod sys;

/// The promise to tell the waiting parent that we are ready. Dropped without [`Readiness::announce`], it tells the
/// parent that we failed.
pub struct Readiness {
    parent: Option<File>,
}

/// What is left of the output once in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Errors still go where they went: somebody asked for a log.
    KeepErrors,
    /// Nothing goes anywhere.
    Discard,
}

impl Readiness {
    /// For a process that stays in the foreground: nobody waits.
    #[must_use]
    pub const fn nobody_waits() -> Self {
        Self { parent: None }
    }

    /// Says that we serve. The parent, if there is one, exits with success.
    ///
    /// # Errors
    /// The parent died, or the standard streams cannot be redirected.
    pub fn announce(self, output: Output) -> io::Result<()> {
        let Some(mut parent) = self.parent else {
            return Ok(());
        };
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        if output == Output::Discard {
            rustix::stdio::dup2_stderr(&null)?;
        }
        parent.write_all(&[1])
    }
}

/// Goes to the background: returns in a child process in a session of its own, while the parent waits for
/// [`Readiness::announce`] and then exits. To be called while there is but one thread.
///
/// # Errors
/// What the kernel said.
pub fn detach() -> io::Result<Readiness> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match sys::fork()? {
        sys::Side::Parent => {
            drop(write);
            wait(File::from(read))
        }
        sys::Side::Child => {
            drop(read);
            rustix::process::setsid()?;
            std::env::set_current_dir("/")?;
            let parent = Some(File::from(write));
            Ok(Readiness { parent })
        }
    }
}

/// Waits for the child's word, and ends this process accordingly.
fn wait(mut child: File) -> ! {
    let mut word = [0];
    let ready = child.read_exact(&mut word).is_ok();
    std::process::exit(i32::from(!ready));
}

/// Becomes readable when somebody asks us to end (`SIGTERM`, `SIGINT`, `SIGHUP`).
pub struct Termination(OwnedFd);

impl Termination {
    /// Catches the signals from now on. To be called before other threads are started, which inherit it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn catch() -> io::Result<Self> {
        sys::catch(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]).map(Self)
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
