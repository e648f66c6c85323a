//! Where the programs a supervisor starts are: in `$DELUGEFS_LIBEXEC` when that is set (and then only there), else next
//! to the running executable, else in `$PATH`.

use std::path::{Path, PathBuf};

/// Names a folder that holds `delugefs-diskworker`, `delugefs-fusefront` and `delugefs-supervisor`.
pub const LIBEXEC_ENV: &str = "DELUGEFS_LIBEXEC";

/// The path to start `program` by. A bare name when only `$PATH` can find it.
pub fn find(program: &str) -> PathBuf {
    let set = std::env::var_os(LIBEXEC_ENV).filter(|dir| !dir.is_empty());
    choose(program, set.map(PathBuf::from).as_deref(), std::env::current_exe().ok().as_deref())
}

fn choose(program: &str, libexec: Option<&Path>, me: Option<&Path>) -> PathBuf {
    if let Some(dir) = libexec {
        return dir.join(program);
    }
    let beside = me.and_then(Path::parent).map(|dir| dir.join(program));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| program.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_places() {
        let dir = tempfile::tempdir().unwrap();
        let me = dir.path().join("delugefs");
        assert_eq!(choose("w", None, Some(&me)), Path::new("w"));
        std::fs::write(dir.path().join("w"), "").unwrap();
        assert_eq!(choose("w", None, Some(&me)), dir.path().join("w"));
        assert_eq!(choose("w", Some(Path::new("/opt")), Some(&me)), Path::new("/opt/w"));
    }
}
