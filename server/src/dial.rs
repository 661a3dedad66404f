//! Dials another server: TCP, TLS 1.3 with its pinned key, and the exporter of the connection.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use strongroom_protocol::token::EXPORTER_LABEL;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// TCP and TLS handshake with one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection whose other side proved the pinned key.
pub struct Dialled {
    /// The connection.
    pub stream: TlsStream<TcpStream>,
    /// Which address answered, `host:port`.
    pub address: String,
    /// RFC 9266: what an enrolment binds itself to.
    pub exporter: [u8; 32],
}

/// Why no address could be dialled, in plain words.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DialError {
    /// One of them shows another key than the pinned one.
    #[error("{0}: its TLS key is not the pinned one")]
    WrongKey(String),
    /// None answers.
    #[error("{0}")]
    Unreachable(String),
}

/// Dials addresses (`host:port`, several with commas) until one answers. Says why the last one did
/// not, or that one has another key.
pub async fn dial(addresses: &str, tls: &Arc<ClientConfig>) -> Result<Dialled, DialError> {
    let mut trouble = DialError::Unreachable("no address is known".to_owned());
    for address in addresses.split(',').map(str::trim) {
        let error = match timeout(CONNECT_TIMEOUT, handshake(address, tls.clone())).await {
            Ok(Ok(dialled)) => return Ok(dialled),
            Ok(Err(error)) => error,
            Err(_) => DialError::Unreachable(format!("{address} does not answer in time")),
        };
        if !matches!(trouble, DialError::WrongKey(_)) {
            trouble = error;
        }
    }
    Err(trouble)
}

async fn handshake(address: &str, tls: Arc<ClientConfig>) -> Result<Dialled, DialError> {
    let unreachable = |error: std::io::Error| match is_wrong_key(&error) {
        true => DialError::WrongKey(address.to_owned()),
        false => DialError::Unreachable(format!("{address}: {error}")),
    };
    let socket = TcpStream::connect(address).await.map_err(unreachable)?;
    socket.set_nodelay(true).map_err(unreachable)?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|_| DialError::Unreachable(format!("{address}: not HOST:PORT")))?;
    let stream = TlsConnector::from(tls).connect(name, socket).await.map_err(unreachable)?;
    let exporter = stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None);
    let exporter =
        exporter.map_err(|error| DialError::Unreachable(format!("TLS exporter: {error}")))?;
    Ok(Dialled { stream, address: address.to_owned(), exporter })
}

/// Whether a handshake failed because of the other side's key.
fn is_wrong_key(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}
