//! Where results and errors of commands go, and what every command needs: profile, way to read.

use std::io::Write;
use std::path::Path;

use serde::Serialize;
use strongroom_protocol::error::ErrorCode;
use zeroize::Zeroizing;

use crate::arguments::{identities_in, local_time_of_seconds};
use crate::durable;
use crate::error::ClientError;
use crate::history;
use crate::kit::{KIT_MAX_BYTES, Kit};
use crate::options::{Global, Reading};
use crate::output::printable;
use crate::profile::{ConnectOptions, Profile, ProfileFolder, locate_home, parse_addresses};
use crate::progress::{Display, Monitor, Style};
use crate::standby::{self, Chosen, Purpose};
use crate::transport::Client;
use crate::trust::{ReadAccess, is_server_role};

/// Where results go.
pub struct Output {
    /// Options of every command.
    pub global: Global,
    /// Standard output is taken: results go to standard error.
    pub is_piped: bool,
}

impl Output {
    /// A client of the profile's server, whose ledger continues what was seen of it.
    pub async fn client(&self) -> Result<Client, ClientError> {
        history::connect(&mut self.profile()?, &self.connect()?).await
    }

    /// Prints text for people while a command runs.
    pub fn say(&self, text: &str) {
        if !self.global.json && !self.global.quiet {
            // Where nobody listens there is nobody to tell.
            let _ = print(self.is_piped, &printable(text));
        }
    }

    /// The profile's folder.
    pub fn folder(&self) -> Result<ProfileFolder, ClientError> {
        ProfileFolder::new(&locate_home(self.global.home.clone())?, &self.global.profile)
    }

    /// The profile.
    pub fn profile(&self) -> Result<Profile, ClientError> {
        Profile::open(self.folder()?)
    }

    /// How to connect.
    pub fn connect(&self) -> Result<ConnectOptions, ClientError> {
        let servers = self.global.server.as_deref().map(parse_addresses).transpose()?;
        Ok(ConnectOptions { servers: servers.unwrap_or_default(), ..ConnectOptions::default() })
    }

    /// A progress display where somebody looks.
    pub fn display(&self, monitor: &Monitor, verb: &'static str) -> Display {
        let is_hidden = self.global.quiet || self.global.json;
        Display::start(monitor, verb, if is_hidden { Style::Hidden } else { Style::Automatic })
    }

    /// Prints a result: as an object with `--json`, else as text.
    pub fn emit<T: Serialize>(
        &self,
        result: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), ClientError> {
        let line = if self.global.json {
            let json = serde_json::to_string(result)
                .map_err(|error| ClientError::Bug(format!("result: {error}")))?;
            format!("{json}\n")
        } else if self.global.quiet {
            return Ok(());
        } else {
            printable(&text())
        };
        print(self.is_piped, &line).map_err(|error| ClientError::file("print the result", error))
    }

    /// Prints a piece of a result that is too long to be held.
    pub fn put(&self, text: &str) -> Result<(), ClientError> {
        print(self.is_piped, &printable(text))
            .map_err(|error| ClientError::file("print the result", error))
    }

    /// Prints a piece of an object that is too long to be held.
    pub fn put_json(&self, text: &str) -> Result<(), ClientError> {
        print(self.is_piped, text).map_err(|error| ClientError::file("print the result", error))
    }

    /// The way to read that the options name.
    pub async fn access(
        &self,
        reading: &Reading,
        unverified: bool,
    ) -> Result<ReadAccess, ClientError> {
        let mut connect = self.connect()?;
        connect.from_replica = reading.from_replica;
        if let Some(kit) = &reading.kit {
            return ReadAccess::with_kit(&read_kit(kit)?, &connect, unverified).await;
        }
        let profile = self.profile()?;
        let role = profile.settings().role;
        if is_server_role(role) {
            let Some(namespace) = &reading.namespace else {
                return Err(ClientError::Usage(format!(
                    "a profile of role {role} sees all namespaces: name one with --namespace"
                )));
            };
            let mut profile = profile;
            return ReadAccess::with_server_profile(&mut profile, namespace, &connect).await;
        }
        let identities = match &reading.identity {
            Some(path) => identities_in(&read_text(path)?)?,
            None => Vec::new(),
        };
        let Chosen { mut profile, is_replica } =
            standby::choose(profile, &connect, Purpose::Read).await?;
        connect.from_replica = is_replica;
        ReadAccess::with_profile(&mut profile, identities, &connect).await
    }
}

/// Tells an error, on standard error and with `--json` as an object.
pub fn report(global: &Global, is_piped: bool, error: &ClientError) {
    let mut text = format!("strongroom: {error}\n");
    let mut code = None;
    if let ClientError::Server(body) = error {
        code = Some(body.code.name());
        if let (ErrorCode::Locked, Some(until)) = (body.code, body.locked_until_seconds) {
            text.push_str(&format!("strongroom: locked until {}\n", local_time_of_seconds(until)));
        }
    }
    // Where nobody listens there is nobody to tell.
    let _ = std::io::stderr().write_all(printable(&text).as_bytes());
    if global.json {
        let number = error.exit_code().number();
        let object = serde_json::json!({
            "error": error.to_string(), "code": code, "exit_code": number,
        });
        let _ = print(is_piped, &format!("{object}\n"));
    }
}

fn print(is_piped: bool, text: &str) -> std::io::Result<()> {
    if is_piped {
        return std::io::stderr().write_all(text.as_bytes());
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Reads a recovery kit.
pub fn read_kit(path: &Path) -> Result<Kit, ClientError> {
    Kit::parse(&read_text(path)?)
        .map_err(|error| ClientError::Usage(format!("{}: {error}", path.display())))
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, ClientError> {
    let max_bytes = u64::try_from(KIT_MAX_BYTES).unwrap_or(u64::MAX);
    let bytes = Zeroizing::new(durable::read(path, max_bytes)?);
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}
