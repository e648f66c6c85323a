//! Commands in hints and notes, as they have to be typed here: with the directories that were typed. Whoever wrote the sentence, in
//! whichever process, need not know them: a command stands between backticks and begins with `delugefs`.

use std::path::{Path, PathBuf};

use delugefs_proto::rundir;

const COMMAND: &str = "`delugefs ";
/// What is typed on another host of the cluster.
const ELSEWHERE: [&str; 1] = ["invite"];

/// What was typed.
#[derive(Clone, Debug, Default)]
pub struct Here {
    run_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

impl Here {
    /// The defaults need not be typed.
    pub fn new(run_dir: Option<&Path>, state_dir: Option<&Path>) -> Self {
        let run_dir = run_dir.filter(|dir| *dir != rundir::default_run_dir());
        let state_dir = state_dir.filter(|dir| *dir != rundir::default_state_dir());
        Self { run_dir: run_dir.map(Into::into), state_dir: state_dir.map(Into::into) }
    }

    /// A sentence, with its commands as they have to be typed.
    pub fn say(&self, sentence: &str) -> String {
        let mut parts = sentence.split(COMMAND);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (command, rest) = part.split_once('`').unwrap_or((part, ""));
            out += COMMAND;
            out += &self.command(command);
            if command.len() < part.len() {
                out += "`";
                out += rest;
            }
        }
        out
    }

    fn command(&self, command: &str) -> String {
        let word = command.split(' ').next().unwrap_or_default();
        // One that names a directory is about another supervisor.
        if ELSEWHERE.contains(&word) || command.contains("--run-dir") {
            return command.to_owned();
        }
        let mut out = String::new();
        if let Some(dir) = &self.run_dir {
            out += &format!("--run-dir {} ", quoted(dir));
        }
        out += command;
        // The others ask the supervisor, which knows.
        if let Some(dir) = self.state_dir.as_ref().filter(|_| word == "run" && !command.contains("--state-dir")) {
            out += &format!(" --state-dir {}", quoted(dir));
        }
        out
    }
}

fn quoted(path: &Path) -> String {
    crate::escape::quoted(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_the_directories_that_were_typed() {
        let say = |run_dir: &str, state_dir: Option<&str>, text: &str| {
            Here::new(Some(Path::new(run_dir)), state_dir.map(Path::new)).say(text)
        };
        let hint = "`delugefs status` shows it; `delugefs run home /d --create` makes one";
        let default = rundir::default_run_dir();
        assert_eq!(say(default.to_str().unwrap(), None, hint), hint);
        assert_eq!(Here::default().say(hint), hint);
        assert_eq!(
            say("/r", Some("s"), hint),
            "`delugefs --run-dir /r status` shows it; `delugefs --run-dir /r run home /d --create --state-dir s` makes one"
        );
        assert_eq!(say("it's", None, "`delugefs stop`"), r"`delugefs --run-dir 'it'\''s' stop`");
        // On another host, of another supervisor, no command, cut short.
        for text in [
            "`delugefs invite` on a member",
            "`delugefs --run-dir DIR run home /d --state-dir DIR`",
            "delugefs is `fine`, `delugefs` too",
            "",
        ] {
            assert_eq!(say("/r", Some("s"), text), text);
        }
        assert_eq!(say("/r", None, "see `delugefs disks"), "see `delugefs --run-dir /r disks");
    }
}
