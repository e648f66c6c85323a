//! How a disk takes part in the network, as it is typed for `run` and `disk add`.

use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener, UdpSocket};

use clap::Args;
use delugefs_proto::control_pb::NetSettings;
use delugefs_proto::exit::{Exit, UserError};

#[derive(Debug, Args)]
pub(super) struct Net {
    /// Fetch contents to this disk only to read them
    #[arg(long, overrides_with = "no_lazy")]
    lazy: bool,
    /// Keep copies on this disk, after it was lazy
    #[arg(long, overrides_with = "lazy")]
    no_lazy: bool,
    /// TCP port of this disk for other disks [default: any, the same again; 0 takes back what was said before]
    #[arg(long, value_name = "PORT")]
    btport: Option<u16>,
    /// Where this disk is: copies are spread over sites ('' takes it back)
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
    /// IP address to listen on for other disks [default: all; '' takes back what was said before]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

impl Net {
    /// Before anything is started.
    ///
    /// # Errors
    /// What was typed for an address is none of this machine.
    pub fn check(&self) -> Result<(), UserError> {
        let Some(text) = self.listen.as_ref().filter(|text| !text.is_empty()) else { return Ok(()) };
        let wrong = match text.parse::<IpAddr>() {
            Err(_) => "is no IP address",
            Ok(address) if is_elsewhere(address) => "is no address of this machine",
            Ok(_) => return Ok(()),
        };
        let hint = "write one of this machine, such as 192.168.1.5 or fd00::2; --btport PORT sets the port";
        Err(UserError::new(Exit::Usage, format!("{text:?} {wrong}")).hint(hint))
    }

    /// Whether a new disk can have the port: when its worker finds out, the disk is made.
    ///
    /// # Errors
    /// Somebody else has it.
    pub fn check_port(&self) -> Result<(), UserError> {
        let address = self.listen.as_ref().and_then(|text| text.parse().ok()).unwrap_or(IpAddr::from([0; 4]));
        match self.btport.map(|port| (port, TcpListener::bind((address, port)))) {
            Some((port, Err(error))) if error.kind() == ErrorKind::AddrInUse => {
                let error = UserError::new(Exit::InUse, format!("port {port} is in use"));
                Err(error.hint("choose another one with --btport PORT, or leave it out"))
            }
            _ => Ok(()),
        }
    }

    /// For the supervisor. Only the configuration has limits.
    pub fn settings(&self) -> NetSettings {
        NetSettings {
            listen: self.listen.clone(),
            port: self.btport.map(Into::into),
            lazy: (self.lazy || self.no_lazy).then_some(self.lazy),
            site: self.site.clone(),
            ..NetSettings::default()
        }
    }
}

fn is_elsewhere(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}
