//! Addresses as people write them: `PORT`, `HOST:PORT` or `[IPV6]:PORT`.
//!
//! There is one parser, used by the flags of the node, by the client and for the leader's address in a
//! reply, so that an address has one normal form and two of them can be compared as text. Names are not
//! resolved here: that takes a network, and its answer changes.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV6};

use crate::limits::ADDRESS_SIZE_MAX;

/// The host of an address that names none.
pub const HOST_DEFAULT: &str = "127.0.0.1";

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub problem: AddressProblem,
}

/// What is wrong with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressProblem {
    /// Nothing was given.
    Empty,
    /// A host stands there, and no port.
    NoPort,
    /// The port is not a number from 1 to 65535.
    BadPort,
    /// A colon with nothing before it.
    NoHost,
    /// The host is neither a name nor an IPv4 address.
    BadHost,
    /// What stands in brackets is not an IPv6 address.
    BadIpv6,
    /// An IPv6 address without brackets: where the port begins cannot be told.
    NoBrackets,
    /// Longer than [`ADDRESS_SIZE_MAX`].
    TooLong,
    /// Where host and port are given apart, the host has a colon and is no IPv6 address.
    ColonInHost,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.text.chars().take(80).collect();
        write!(f, "{shown:?} is not an address: ")?;
        match self.problem {
            AddressProblem::Empty => f.write_str("it is empty")?,
            AddressProblem::NoPort => f.write_str("the port is missing")?,
            AddressProblem::BadPort => f.write_str("the port is not a number from 1 to 65535")?,
            AddressProblem::NoHost => f.write_str("nothing stands before the colon")?,
            AddressProblem::BadHost => f.write_str("the host is neither a name nor an IPv4 address")?,
            AddressProblem::BadIpv6 => f.write_str("what stands in brackets is not an IPv6 address")?,
            AddressProblem::NoBrackets => f.write_str("an IPv6 address must stand in brackets")?,
            AddressProblem::ColonInHost => {
                return f.write_str("a host is wanted here, without a port");
            }
            AddressProblem::TooLong => {
                write!(f, "it has {} bytes, allowed are {ADDRESS_SIZE_MAX}", self.text.len())?;
            }
        }
        f.write_str("; write PORT, HOST:PORT or [IPV6]:PORT")
    }
}

impl std::error::Error for AddressError {}

/// The normal form (`HOST:PORT` or `[IPV6]:PORT`) of an address. The host defaults to [`HOST_DEFAULT`].
pub fn parse_address(text: &str) -> Result<String, AddressError> {
    normal_form(text).map_err(|problem| AddressError { text: text.to_owned(), problem })
}

/// The normal form of a host and a port that were given apart. An IPv6 host may lack its brackets.
pub fn join_address(host: &str, port: u16) -> Result<String, AddressError> {
    if !host.contains(':') || host.starts_with('[') {
        return parse_address(&format!("{host}:{port}"));
    }
    parse_address(&format!("[{host}]:{port}"))
        .map_err(|_| AddressError { text: host.to_owned(), problem: AddressProblem::ColonInHost })
}

fn normal_form(text: &str) -> Result<String, AddressProblem> {
    if text.is_empty() {
        return Err(AddressProblem::Empty);
    }
    if text.len() > ADDRESS_SIZE_MAX {
        return Err(AddressProblem::TooLong);
    }
    if text.starts_with('[') {
        return ipv6_normal_form(text);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        // All digits were meant as a port; anything else as a host.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let port = if digits { parse_port(text)? } else { return Err(AddressProblem::NoPort) };
        return Ok(format!("{HOST_DEFAULT}:{port}"));
    };
    if host.contains(':') {
        return Err(AddressProblem::NoBrackets);
    }
    let host = host_normal_form(host)?;
    Ok(format!("{host}:{}", parse_port(port)?))
}

fn ipv6_normal_form(text: &str) -> Result<String, AddressProblem> {
    let (_, port) = text.split_once(']').ok_or(AddressProblem::BadIpv6)?;
    let port = parse_port(port.strip_prefix(':').ok_or(AddressProblem::NoPort)?)?;
    let mut address: SocketAddrV6 = text.parse().map_err(|_| AddressProblem::BadIpv6)?;
    address.set_port(port);
    Ok(address.to_string())
}

/// A port of digits alone: `u16::from_str` would also take "+9001".
fn parse_port(text: &str) -> Result<u16, AddressProblem> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0).ok_or(AddressProblem::BadPort)
}

fn host_normal_form(host: &str) -> Result<String, AddressProblem> {
    if host.is_empty() {
        return Err(AddressProblem::NoHost);
    }
    // The resolver would take "127.1" and "0x7f.1" for addresses; a typing error is likelier.
    if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        let address: Ipv4Addr = host.parse().map_err(|_| AddressProblem::BadHost)?;
        return Ok(address.to_string());
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label_is_legal = |label: &str| !label.is_empty() && label.bytes().all(legal);
    if host.strip_suffix('.').unwrap_or(host).split('.').all(label_is_legal) {
        Ok(host.to_ascii_lowercase())
    } else {
        Err(AddressProblem::BadHost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_writing_has_one_normal_form() {
        let cases = [
            ("9001", "127.0.0.1:9001"),
            ("09001", "127.0.0.1:9001"),
            ("127.0.0.1:9001", "127.0.0.1:9001"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("LocalHost:65535", "localhost:65535"),
            ("node-1.my_cluster.example.:9001", "node-1.my_cluster.example.:9001"),
            ("[::1]:9001", "[::1]:9001"),
            ("[0:0:0:0:0:0:0:1]:9001", "[::1]:9001"),
            ("[fe80::1%2]:9001", "[fe80::1%2]:9001"),
        ];
        for (text, normal) in cases {
            assert_eq!(parse_address(text).as_deref(), Ok(normal));
            assert_eq!(parse_address(normal).as_deref(), Ok(normal));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        use AddressProblem::*;
        let cases = [
            ("", Empty),
            ("localhost", NoPort),
            ("127.0.0.1", NoPort),
            ("[::1]", NoPort),
            (":9001", NoHost),
            ("0", BadPort),
            ("65536", BadPort),
            ("localhost:", BadPort),
            ("localhost:+9001", BadPort),
            ("[::1]:", BadPort),
            ("127.0.0.256:9001", BadHost),
            ("127.1:9001", BadHost),
            ("a..b:9001", BadHost),
            ("a b:9001", BadHost),
            ("http//x:9001", BadHost),
            ("[localhost]:9001", BadIpv6),
            ("[::1:9001", BadIpv6),
            ("::1:9001", NoBrackets),
        ];
        for (text, problem) in cases {
            assert_eq!(parse_address(text), Err(AddressError { text: text.to_owned(), problem }));
        }
        let long = format!("{}:9001", "a".repeat(ADDRESS_SIZE_MAX));
        assert_eq!(parse_address(&long).unwrap_err().problem, TooLong);
    }

    #[test]
    fn a_host_given_apart_needs_no_brackets() {
        assert_eq!(join_address("::1", 9001).as_deref(), Ok("[::1]:9001"));
        assert_eq!(join_address("[::1]", 9001).as_deref(), Ok("[::1]:9001"));
        assert_eq!(join_address("localhost", 9001).as_deref(), Ok("localhost:9001"));
        assert_eq!(join_address("fe80::1%2", 9001).as_deref(), Ok("[fe80::1%2]:9001"));
        assert_eq!(join_address("", 9001).unwrap_err().problem, AddressProblem::NoHost);
        assert_eq!(join_address("localhost:9002", 9001).unwrap_err().problem, AddressProblem::ColonInHost);
    }
}
