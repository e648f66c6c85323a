//! One error for everything a file system call can end in: an errno that reaches the caller, a sentence for the log.
//!
//! Errno, frame and gRPC status are three spellings of it; this is the only place that translates between them.

use std::fmt;

use nix::errno::Errno;

/// The errno, or EIO for a number that has no name here: `Errno` has 0 for it, which in a reply means success.
pub fn named(errno: Errno) -> Errno {
    if errno == Errno::UnknownErrno { Errno::EIO } else { errno }
}

/// A failed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsError {
    /// What the caller of the system call gets.
    pub errno: Errno,
    /// What went wrong and what to do; may be empty where the errno says it all.
    pub message: String,
}

/// Result of a file system operation.
pub type FsResult<T> = Result<T, FsError>;

impl FsError {
    /// With a sentence.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { errno: named(errno), message: message.into() }
    }

    /// What went wrong as a part of a longer sentence, whose end says an errno of its own.
    pub fn why(&self) -> &str {
        if self.message.is_empty() { self.errno.desc() } else { &self.message }
    }

    /// The same error with what it is about before its sentence.
    pub fn about(self, what: &str) -> Self {
        let message = if self.message.is_empty() { what.to_owned() } else { format!("{what}: {}", self.message) };
        Self { message, ..self }
    }

    /// From the `errno` and `message` of a reply.
    pub fn from_reply(errno: u32, message: String) -> Self {
        match i32::try_from(errno).map_or(Errno::UnknownErrno, Errno::from_raw) {
            Errno::UnknownErrno => Self::new(Errno::EIO, message).about(&format!("error {errno}")),
            known => Self::new(known, message),
        }
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.as_str() {
            "" => f.write_str(self.errno.desc()),
            message => write!(f, "{message} ({})", self.errno.desc()),
        }
    }
}

impl std::error::Error for FsError {}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        Self::new(errno, "")
    }
}

impl From<std::io::Error> for FsError {
    /// Keeps the system's errno; anything else is EIO, with what it says.
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw) {
            Errno::UnknownErrno => Self::new(Errno::EIO, error.to_string()),
            errno => errno.into(),
        }
    }
}

impl From<FsError> for tonic::Status {
    fn from(error: FsError) -> Self {
        let code = match error.errno {
            Errno::ENOENT | Errno::ESTALE => tonic::Code::NotFound,
            Errno::EEXIST => tonic::Code::AlreadyExists,
            Errno::EACCES | Errno::EPERM => tonic::Code::PermissionDenied,
            Errno::ENOSPC | Errno::EDQUOT | Errno::EMFILE | Errno::ENFILE => tonic::Code::ResourceExhausted,
            Errno::EINVAL | Errno::ENAMETOOLONG | Errno::ENOTDIR | Errno::EISDIR => tonic::Code::InvalidArgument,
            Errno::EROFS | Errno::EBUSY | Errno::ENOTEMPTY => tonic::Code::FailedPrecondition,
            Errno::EAGAIN | Errno::ECONNREFUSED | Errno::ECONNRESET => tonic::Code::Unavailable,
            Errno::ETIMEDOUT => tonic::Code::DeadlineExceeded,
            Errno::ENOSYS | Errno::EOPNOTSUPP => tonic::Code::Unimplemented,
            _ => tonic::Code::Internal,
        };
        tonic::Status::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_errno_over_every_spelling() {
        let error = FsError::from(std::io::Error::from_raw_os_error(nix::libc::ENOSPC));
        assert_eq!(error.errno, Errno::ENOSPC);
        assert_eq!(tonic::Status::from(error.clone()).code(), tonic::Code::ResourceExhausted);
        assert_eq!(FsError::from_reply(error.errno as u32, String::new()), error);
        assert_eq!(FsError::from(std::io::Error::other("odd")).errno, Errno::EIO);
        let gone = FsError::new(Errno::EIO, "disk gone");
        assert_eq!((gone.why(), gone.to_string().as_str()), ("disk gone", "disk gone (I/O error)"));
        assert_eq!(gone.about("file 7").to_string(), "file 7: disk gone (I/O error)");
        assert_eq!(FsError::from(Errno::EIO).why(), "I/O error");
        assert_eq!(FsError::from(Errno::EIO).about("file 7").to_string(), "file 7 (I/O error)");
    }

    /// As NFS has them, or a system that is newer than this program.
    #[test]
    fn a_number_without_a_name_is_no_success() {
        const NUMBER: i32 = 9524;
        let errors = [
            FsError::from_reply(NUMBER as u32, String::new()),
            FsError::from_reply(NUMBER as u32, "no".into()),
            FsError::from_reply(u32::MAX, String::new()),
            FsError::from_reply(0, String::new()),
            FsError::from(std::io::Error::from_raw_os_error(NUMBER)),
            FsError::from(Errno::from_raw(NUMBER)),
            FsError::new(Errno::from_raw(NUMBER), "no"),
        ];
        for error in &errors {
            assert_eq!(error.errno, Errno::EIO, "{error:?}");
        }
        for error in [&errors[0], &errors[1], &errors[4]] {
            assert!(error.to_string().contains("9524"), "{error}");
        }
    }
}
