//! `delugefs`: the user's command. It talks to the host's supervisor and shows what it says; only `run` starts anything.

mod client;
mod drain;
mod here;
mod json;
mod members;
mod net;
mod run;
mod show;
mod table;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use delugefs_proto::exit::{Exit, UserError};
use delugefs_proto::worker_pb::Mark;
use delugefs_proto::{control_pb as pb, rundir};

pub use self::here::Here;
use crate::paths;
use crate::server::uid_of;

/// A filesystem on disks of your choice: start it, mount it, ask it.
#[derive(Debug, Parser)]
#[command(name = "delugefs", version)]
pub struct Cli {
    /// Where the sockets are [default: /var/run/delugefs, or the user's]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const RUN_HELP: &str = "\
What is said of the disk and its mount holds for this run; only the port is the same again. What `delugefs disk add` said of the disk
stays as it was. --state-dir, --no-mdns and --peer are for the supervisor, and do nothing when one runs already.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a disk, and mount the filesystem, until interrupted
    #[command(after_help = RUN_HELP)]
    Run(run::Arguments),
    /// Show the disks and mounts of this host
    Status {
        /// Only what is wrong; exit code 20 if anything is
        #[arg(short = 'x')]
        only_problems: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Show the disks of this host in detail
    Disks {
        #[command(flatten)]
        form: Form,
    },
    /// Show the torrents that are live now
    Torrents {
        #[command(flatten)]
        form: Form,
    },
    /// Show where the contents of files are
    Whereis {
        /// A path below a mountpoint of this host, or from the root of the filesystem
        #[arg(required = true)]
        path: Vec<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Check everything on this host's disks; exit code 20 if something is wrong
    Scrub {
        #[command(flatten)]
        form: Form,
    },
    /// Print an invitation for one further host
    Invite {
        /// How long it works: seconds, or with m, h or d; 30d at most
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = seconds)]
        expires: u32,
    },
    /// Make this host a member of a cluster, with an invitation from another host
    Join {
        /// What `delugefs invite` printed there
        token: String,
    },
    /// Show the hosts and disks of the cluster
    Peers {
        #[command(flatten)]
        form: Form,
    },
    /// Take a host's or disk's right to take part, for ever
    Revoke {
        /// The first 8 or more digits of its id
        id: String,
        /// Also when it holds contents that no other disk has, or runs on this host
        #[arg(long)]
        yes: bool,
        /// Also the hosts that are members only because it let them in; an invitation lets them in again
        #[arg(long)]
        with_hosts: bool,
    },
    /// List the files that exist in several versions
    Conflicts {
        #[command(flatten)]
        form: Form,
    },
    /// Show or set how many copies are wanted of what is below a path
    Copies {
        /// A path below a mountpoint of this host
        path: PathBuf,
        /// How many disks are to hold each content; `inherit`: as many as what it is in says
        #[arg(value_parser = wanted_copies)]
        number: Option<Wanted>,
    },
    /// Add a disk to this host or take one away
    #[command(subcommand)]
    Disk(Disk),
    /// Mount the filesystem on a folder, now and at every start
    Mount {
        /// The folder
        dir: PathBuf,
        /// Serve it as this user (when the supervisor runs as root)
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Unmount it
    Umount {
        /// The folder it is mounted on
        dir: PathBuf,
    },
    /// Stop the mounts and disks of this host and its supervisor
    Stop,
}

#[derive(Debug, Subcommand)]
enum Disk {
    /// Serve a disk, now and at every start
    Add {
        /// The disk's folder
        root: PathBuf,
        /// Make a new disk of this folder, which must be empty
        #[arg(long)]
        create: bool,
        #[command(flatten)]
        net: net::Net,
    },
    /// Empty a disk: what it holds is copied to others, then it lets go
    Drain {
        /// The first 8 or more digits of its id, or the folder (with a slash in it) of a disk of this host
        disk: String,
        /// Keep it after all
        #[arg(long)]
        undo: bool,
    },
    /// Do not wait any more for a disk that is away: its copies are made anew
    Forget {
        /// The first 8 or more digits of its id
        disk: String,
    },
    /// Serve it no longer; what is on it stays
    Remove {
        /// The disk's folder
        root: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, Args)]
struct Form {
    /// For programs (the fields: supervisor/DESIGN.md)
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// What was typed, for what is to be typed next.
    pub fn here(&self) -> Here {
        let state_dir = match &self.command {
            Command::Run(arguments) => arguments.state_dir.as_deref(),
            _ => None,
        };
        Here::new(self.run_dir.as_deref(), state_dir)
    }
}

/// What `copies` sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Number(u32),
    Inherit,
}

fn wanted_copies(text: &str) -> Result<Wanted, String> {
    match text.parse() {
        Ok(number @ 1..=100) => Ok(Wanted::Number(number)),
        _ if text == "inherit" => Ok(Wanted::Inherit),
        _ => Err("write a number from 1 to 100, or `inherit`".into()),
    }
}

/// What to do about a disk that is to be removed when there is no supervisor.
const NOT_SERVED: &str = "start delugefs as always and repeat this, or take the disk out of `added.toml` in the state directory (or of \
    your `delugefs.toml`): it is not started any more then; what is on it stays either way";

/// A time as people write it, in seconds.
fn seconds(text: &str) -> Result<u32, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let factor = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => 1,
    };
    let seconds = number.parse::<u32>().ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(factor));
    seconds.ok_or_else(|| "write a time such as 90s, 10m, 2h or 1d".into())
}

/// Do what the command line says.
///
/// # Errors
/// What [`delugefs_proto::exit::report`] is to show.
pub async fn execute(cli: Cli) -> anyhow::Result<Exit> {
    let here = cli.here();
    let run_dir = cli.run_dir.unwrap_or_else(rundir::default_run_dir);
    if let Command::Run(arguments) = cli.command {
        return run::run(&run_dir, here, arguments).await;
    }
    let mut control = match (client::connect(&run_dir).await, &cli.command) {
        (Err(error), Command::Disk(Disk::Remove { .. })) if error.exit == Exit::NoSupervisor => {
            return Err(error.hint(NOT_SERVED).into());
        }
        (control, _) => control?,
    };
    match cli.command {
        Command::Run(_) => {}
        Command::Status { only_problems, form } => {
            return show::status(&mut control, &here, only_problems, form.json).await;
        }
        Command::Disks { form } => return show::disks(&mut control, &here, form.json).await,
        Command::Torrents { form } => return show::torrents(&mut control, form.json).await,
        Command::Whereis { path, form } => return show::whereis(&mut control, &here, &path, form.json).await,
        Command::Scrub { form } => return show::scrub(&mut control, form.json).await,
        Command::Invite { expires } => {
            let invited = client::answer(control.invite(pb::InviteRequest { expires_s: expires }).await)?;
            println!("{}", invited.token);
            eprintln!("On the other host: delugefs run CLUSTER ROOT --join TOKEN. It works once; who has it can join.");
        }
        Command::Join { token } => {
            client::answer(control.join(pb::JoinRequest { token, cluster: String::new() }).await)?;
            println!("{}", here.say("this host is a member: `delugefs disk add ROOT --create` makes a disk"));
        }
        Command::Peers { form } => return members::peers(&mut control, form.json).await,
        Command::Revoke { id, yes, with_hosts } => {
            let revoked = client::answer(control.revoke(pb::RevokeRequest { id, yes, with_hosts }).await)?;
            println!("{} {}", revoked.what, revoked.id);
            members::brought(&revoked, with_hosts).iter().for_each(|sentence| println!("{}", here.say(sentence)));
        }
        Command::Conflicts { form } => return members::conflicts(&mut control, form.json).await,
        Command::Copies { path, number } => return members::copies(&mut control, &path, number).await,
        Command::Disk(Disk::Add { root, create, net }) => {
            net.check()?;
            let root = paths::typed(&root)?;
            if create {
                net.check_port()?; // that of a disk that is there may be in use by itself
            }
            let net = Some(net.settings());
            let request = pb::AddDiskRequest { root, create, remember: true, net, ..Default::default() };
            let added = client::answer(control.add_disk(request).await)?;
            println!("disk {}", delugefs_proto::disk::short_id(&added.disk_id));
        }
        Command::Disk(Disk::Drain { disk, undo }) => {
            let mark = if undo { Mark::None } else { Mark::Draining };
            let id = members::disk_id(&mut control, disk).await?;
            let marked = client::answer(control.mark_disk(pb::MarkDiskRequest { id, mark: mark.into() }).await)?;
            let id = delugefs_proto::disk::short_id(&marked.disk_id).to_owned();
            match undo {
                true => println!("disk {id} is kept"),
                false => println!(
                    "disk {id} is being emptied; `delugefs disks` on its host says what is left, and when it may be taken away"
                ),
            }
        }
        Command::Disk(Disk::Forget { disk }) => {
            let mark = Mark::Forgotten.into();
            let marked = client::answer(control.mark_disk(pb::MarkDiskRequest { id: disk, mark }).await)?;
            println!("disk {} is not waited for any more", delugefs_proto::disk::short_id(&marked.disk_id));
        }
        Command::Disk(Disk::Remove { root }) => {
            let root = show::Places::look(&mut control).await?.disk(&root)?;
            let drained = drain::look(&mut control, &root).await;
            client::answer(control.remove_disk(pb::RemoveDiskRequest { root, release: false }).await)?;
            drained.iter().for_each(|disk| println!("{}", here.say(&drain::removed(disk))));
        }
        Command::Mount { dir, user } => {
            let (dir, user) = (paths::typed(&dir)?, user.unwrap_or_default());
            // Before the folder is made.
            uid_of(Some(user.as_str()).filter(|user| !user.is_empty())).map_err(UserError::from)?;
            let places = show::Places::look(&mut control).await?;
            places.check_mountpoint(Path::new(&dir)).map_err(UserError::from)?;
            paths::make_mountpoint(&dir);
            client::answer(
                control.add_mount(pb::AddMountRequest { dir, user, remember: true, root: String::new() }).await,
            )?;
        }
        Command::Umount { dir } => {
            let dir = show::Places::look(&mut control).await?.mount(&dir)?;
            client::answer(control.remove_mount(pb::RemoveMountRequest { dir, release: false }).await)?;
        }
        Command::Stop => client::stop(&mut control, &run_dir).await?,
    }
    Ok(Exit::Ok)
}
