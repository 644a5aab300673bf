//! TLS: the settings of a connection, and what its failures mean to whoever has to correct them.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use async_nats::ConnectOptions;
use rustls::{AlertDescription, CertificateError};

use super::ConnectionError;
use super::settings::read;

/// TLS settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificate and private key of this client.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Whether the handshake comes before the server's greeting.
    pub first: bool,
}

impl Tls {
    pub(super) fn apply(&self, mut options: ConnectOptions) -> Result<ConnectOptions, ConnectionError> {
        if let Some((cert, key)) = &self.certificate {
            // The client reads them while it connects, and its errors do not name the file.
            read("TLS certificate", cert)?;
            read("TLS private key", key)?;
            options = options
                .add_client_certificate(cert.clone(), key.clone())
                .require_tls(true);
        }
        if let Some(ca) = &self.ca {
            read("TLS certificate authority", ca)?;
            options = options.add_root_certificates(ca.clone()).require_tls(true);
        }
        if self.first {
            options = options.tls_first();
        }
        Ok(options)
    }

    /// What a failed connection says about certificates, if that is why it failed.
    pub(super) fn diagnose(&self, failure: &(dyn Error + 'static)) -> Option<String> {
        match failure_in(failure)? {
            rustls::Error::InvalidCertificate(reason @ CertificateError::UnknownIssuer) => Some(format!(
                "no authority trusted here has issued its certificate ({reason:?}); --tlsca names others to trust"
            )),
            rustls::Error::InvalidCertificate(reason) => Some(format!("its certificate is not valid: {reason}")),
            rustls::Error::AlertReceived(alert) if is_about_certificates(*alert) => Some(match self.certificate {
                None => format!("it demands a certificate of this client ({alert:?}); --tlscert and --tlskey give one"),
                Some(_) => format!("it does not accept the certificate of this client ({alert:?})"),
            }),
            _ => None,
        }
    }
}

fn is_about_certificates(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
    )
}

/// The TLS library's own words, which come wrapped in I/O errors.
fn failure_in<'a>(failure: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut failure = Some(failure);
    while let Some(error) = failure {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        failure = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // An I/O error passes over what it wraps when it is asked for its source.
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}
