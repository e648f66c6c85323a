//! A failure a person can act on, on its way from the process that found it to the person's terminal: exit code,
//! message and hint travel as the details of a gRPC status.

use std::error::Error;

use delugefs_proto::control_pb as pb;
use delugefs_proto::exit::{Exit, UserError};
use prost::Message;
use tonic::{Code, Status};

use crate::escape::escape_line;

/// Longest message or hint that travels, in bytes: details are sent as a header, and HTTP/2 peers limit those.
const TEXT_MAX_BYTES: usize = 2048;

/// What [`UserError`] says, in a form that can be kept, compared and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code the command that reports it exits with.
    pub exit: Exit,
    /// What is wrong.
    pub message: String,
    /// What to type next.
    pub hint: Option<String>,
}

impl Failure {
    /// Without a hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// With what to type next.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The message of the control socket; the texts are cut at a length every peer accepts.
    pub fn to_pb(&self) -> pb::Failure {
        let cut = |text: &str| {
            text.chars()
                .scan(0, |n, c| {
                    *n += c.len_utf8();
                    (*n <= TEXT_MAX_BYTES).then_some(c)
                })
                .collect()
        };
        pb::Failure {
            exit: self.exit as u32,
            message: cut(&self.message),
            hint: cut(self.hint.as_deref().unwrap_or_default()),
        }
    }

    /// What a call on the control socket failed with.
    pub fn from_status(status: &Status) -> Self {
        match pb::Failure::decode(status.details()) {
            Ok(failure) if !status.details().is_empty() => failure.into(),
            _ if status.source().is_some_and(|source| source.is::<tonic::transport::Error>()) => {
                Self::new(Exit::NoSupervisor, "the supervisor ended before it answered")
            }
            _ => Self::new(Exit::Failure, status.message()),
        }
    }
}

impl From<pb::Failure> for Failure {
    fn from(pb: pb::Failure) -> Self {
        let exit = Exit::from_code(i32::try_from(pb.exit).unwrap_or(1));
        Self { exit, message: pb.message, hint: Some(pb.hint).filter(|hint| !hint.is_empty()) }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let pb = failure.to_pb();
        let code = match failure.exit {
            Exit::NoDisk => Code::NotFound,
            Exit::Usage => Code::InvalidArgument,
            Exit::NotPermitted => Code::PermissionDenied,
            Exit::InUse | Exit::NotEmpty | Exit::WrongCluster | Exit::BadMountpoint => Code::FailedPrecondition,
            Exit::NoSupervisor => Code::Unavailable,
            _ => Code::Unknown,
        };
        Status::with_details(code, pb.message.clone(), pb.encode_to_vec().into())
    }
}

impl From<Failure> for UserError {
    /// On its way to a terminal: what came from elsewhere is escaped.
    fn from(failure: Failure) -> Self {
        let error = UserError::new(failure.exit, escape_line(&failure.message));
        match failure.hint {
            Some(hint) => error.hint(escape_line(&hint)),
            None => error,
        }
    }
}

impl From<anyhow::Error> for Failure {
    /// The whole chain as one sentence; exit code and hint of the first [`UserError`] in it.
    fn from(error: anyhow::Error) -> Self {
        let message = format!("{error:#}");
        let mut next: Option<&(dyn Error + 'static)> = Some(error.as_ref());
        while let Some(error) = next {
            if let Some(user) = error.downcast_ref::<UserError>() {
                return Self { exit: user.exit, message, hint: user.hint.clone() };
            }
            next = error.source();
        }
        Self::new(Exit::Failure, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_trip_through_a_status() {
        let failure = Failure::new(Exit::NotEmpty, "/a has something in it").hint("choose an empty folder");
        assert_eq!(Failure::from_status(&Status::from(failure.clone())), failure);
        let long = Failure::new(Exit::BadDisk, "ä".repeat(5000));
        assert_eq!(Failure::from_status(&Status::from(long)).message.len(), TEXT_MAX_BYTES);
        let foreign = Failure::from_status(&Status::unavailable("broken pipe"));
        assert_eq!(foreign, Failure::new(Exit::Failure, "broken pipe"));
    }

    #[test]
    fn finds_the_user_error_inside_a_chain() {
        let error = anyhow::Error::from(UserError::new(Exit::InUse, "locked").hint("stop it")).context("cannot start");
        assert_eq!(Failure::from(error), Failure::new(Exit::InUse, "cannot start: locked").hint("stop it"));
    }
}
