//! Panics: bugs, which must not leave anybody without an answer. One in an operation is caught, and its caller gets EIO. One on a
//! thread that reads requests, outside of that, is of a request that nobody would ever answer: whoever waits for it could not
//! even be killed. So the process ends, the kernel answers ENOTCONN to all, and the supervisor mounts again.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use delugefs_proto::exit::Exit;

/// What fuser calls the threads that read requests begins so.
const READING: &str = "fuser-";

thread_local! {
    /// Number of [`caught`] under way, one in another.
    static CAUGHT: Cell<usize> = const { Cell::new(0) };
}

/// Do something; `None` if it panicked.
pub fn caught<T>(operation: impl FnOnce() -> T) -> Option<T> {
    CAUGHT.set(CAUGHT.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(operation));
    CAUGHT.set(CAUGHT.get() - 1);
    if result.is_err() {
        tracing::error!("an operation panicked; this is a bug in delugefs-fusefront");
    }
    result.ok()
}

/// From now on a panic ends the process where it leaves a request without an answer. It is told of before that, as every one.
pub fn end_where_nobody_answers() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        let is_reading = std::thread::current().name().is_some_and(|name| name.starts_with(READING));
        if is_reading && CAUGHT.get() == 0 {
            tracing::error!("a request cannot be answered; this is a bug in delugefs-fusefront, which ends");
            std::process::exit(Exit::Failure as i32);
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Which panic this process is to have; it is the test itself, started by the test.
    const PLAY: &str = "DELUGEFS_TEST_PANIC";

    #[test]
    fn only_where_nobody_answers_a_panic_ends_the_process() {
        if let Ok(thread) = std::env::var(PLAY) {
            return play(thread);
        }
        let exit = |thread: &str| {
            let name = "panics::tests::only_where_nobody_answers_a_panic_ends_the_process";
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", name]).env(PLAY, thread).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().unwrap().code()
        };
        assert_eq!(exit("fs-pool"), Some(0));
        assert_eq!(exit("fuser-3"), Some(Exit::Failure as i32));
    }

    /// One that is caught, and one that is not.
    fn play(thread: String) {
        end_where_nobody_answers();
        let body = || {
            assert_eq!(caught(|| caught(|| panic!("on purpose")).map_or(1, |()| 2)), Some(1));
            assert_eq!(caught(|| panic!("on purpose")), None::<()>);
            panic!("on purpose");
        };
        let thread = std::thread::Builder::new().name(thread).spawn(body).unwrap();
        assert!(thread.join().is_err_and(|panic| panic.downcast_ref() == Some(&"on purpose")));
    }
}
