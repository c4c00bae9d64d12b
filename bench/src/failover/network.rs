//! What the nodes of a run talk over: the loopback interface, or a network of their own that can be cut.
//!
//! With network namespaces each node has a machine's network to itself: an interface at a bridge that the clients are
//! at as well. All of it lives in the namespace that this process was started in (`unshare --net`) and in those of its
//! children, so it is gone when they are; nothing of the host's network is touched.
//!
//! A link is cut in one direction by giving its sender a hardware address that nobody has. Packets are lost then, in
//! silence, as by a broken switch: no reset, no error, no missing carrier. Connections live on and go on if the cut is
//! short enough.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::nodes::shown;

/// Says to a child of this program that it is in a namespace of its own.
pub const INSIDE: &str = "KV_FAILOVER_INSIDE";
/// The port of every node where each has its own address.
const PORT: u16 = 9001;
/// Nobody has this hardware address.
const NOBODY: &str = "02:00:00:00:ff:ff";

/// See the head of this file.
pub enum Network {
    /// All on 127.0.0.1; nothing can be cut.
    Loopback(Vec<String>),
    /// A namespace for each node.
    Namespaces(Vec<Namespace>),
}

/// A namespace, kept by a process that waits for the end of its input.
pub struct Namespace {
    keeper: Child,
    _input: Option<ChildStdin>,
}

/// Who is meant by a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Between the node and everybody, clients too.
    Off,
    /// Between the node and the other nodes; clients reach it.
    Peers,
    /// From the node to the other nodes; it hears them.
    Outgoing,
}

impl Network {
    /// Free ports on the loopback interface. Another process may take one before its node does, and is then seen to.
    pub fn loopback(nodes: usize) -> Result<Network, String> {
        let listeners: Vec<TcpListener> = (0..nodes)
            .map(|_| TcpListener::bind("127.0.0.1:0").map_err(|why| format!("cannot get a port: {why}")))
            .collect::<Result<_, _>>()?;
        let address = |listener: &TcpListener| listener.local_addr().map(|address| address.to_string());
        let addresses: Result<_, _> = listeners.iter().map(address).collect();
        Ok(Network::Loopback(addresses.map_err(|why| format!("a listener has no address: {why}"))?))
    }

    /// Whether this process is in a namespace made for it.
    pub fn is_inside() -> bool {
        std::env::var_os(INSIDE).is_some()
    }

    /// Starts this program anew in a namespace of its own; returns, with the reason, only if that cannot be had here.
    pub fn enter() -> String {
        let this = match std::env::current_exe() {
            Ok(path) => path,
            Err(why) => return format!("where this program lies is not known: {why}"),
        };
        // Whoever is not root may be so in a user namespace of their own, where the system allows that.
        for flags in [&["--net"][..], &["--user", "--map-root-user", "--net"]] {
            let mut probe = Command::new("unshare");
            probe.args(flags).args(["ip", "link", "add", "probe", "type", "bridge"]);
            if quiet(&mut probe) {
                let mut command = Command::new("unshare");
                command.args(flags).arg(&this).args(std::env::args_os().skip(1)).env(INSIDE, "1");
                return format!("{}: {}", shown(&command), command.exec());
            }
        }
        "needs root, or user namespaces, and unshare, nsenter and ip with bridges".to_owned()
    }

    /// A bridge, and a namespace for each node.
    pub fn namespaces(nodes: usize) -> Result<Network, String> {
        assert!(Network::is_inside(), "the host's network is not touched");
        batch(None, "link set lo up\nlink add kvbr type bridge forward_delay 0\nlink set kvbr up\n")?;
        batch(None, &format!("addr add {}/24 dev kvbr\n", host(CLIENTS)))?;
        let mut namespaces = Vec::new();
        for node in 0..nodes {
            let namespace = Namespace::new()?;
            let pid = namespace.keeper.id();
            batch(
                None,
                &format!(
                    "link add kv{node} type veth peer name eth0 netns {pid}\nlink set kv{node} master kvbr\n\
                     link set kv{node} up\n"
                ),
            )?;
            let inside = format!("link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\n", host(node));
            batch(Some(&namespace), &inside)?;
            namespaces.push(namespace);
        }
        Ok(Network::Namespaces(namespaces))
    }

    /// Where each node listens.
    pub fn addresses(&self) -> Vec<String> {
        match self {
            Network::Loopback(addresses) => addresses.clone(),
            Network::Namespaces(nodes) => {
                (0..nodes.len()).map(|node| format!("{}:{PORT}", host(node))).collect()
            }
        }
    }

    /// A command that runs the program where that node is; the program keeps the process.
    pub fn command(&self, node: usize, program: &Path) -> Command {
        match self {
            Network::Loopback(_) => Command::new(program),
            Network::Namespaces(nodes) => {
                let mut command = nodes[node].nsenter();
                command.arg(program);
                command
            }
        }
    }

    /// Whether links can be cut.
    pub fn can_cut(&self) -> bool {
        matches!(self, Network::Namespaces(_))
    }

    /// Cuts links of a node, or mends them.
    pub fn cut(&self, node: usize, cut: Cut, is_cut: bool) -> Result<(), String> {
        let Network::Namespaces(nodes) = self else { panic!("nothing can be cut here") };
        let others: Vec<usize> = (0..nodes.len()).filter(|other| *other != node).collect();
        let mut lost: Vec<(usize, usize)> = others.iter().map(|other| (node, *other)).collect();
        if cut != Cut::Outgoing {
            lost.extend(others.iter().map(|other| (*other, node)));
        }
        if cut == Cut::Off {
            lost.extend([(node, CLIENTS), (CLIENTS, node)]);
        }
        for (from, to) in lost {
            let (device, namespace) = match nodes.get(from) {
                Some(namespace) => ("eth0", Some(namespace)),
                None => ("kvbr", None),
            };
            let to = host(to);
            batch(
                namespace,
                &match is_cut {
                    true => format!("neigh replace {to} lladdr {NOBODY} dev {device} nud permanent\n"),
                    false => format!("neigh del {to} dev {device}\n"),
                },
            )?;
        }
        Ok(())
    }
}

/// The clients' place in numbers of nodes.
const CLIENTS: usize = 250;

fn host(node: usize) -> String {
    format!("10.79.0.{}", node + 1)
}

impl Namespace {
    fn new() -> Result<Namespace, String> {
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = command.spawn().map_err(|why| format!("cannot run {}: {why}", shown(&command)))?;
        let mut input = keeper.stdin.take().expect("it is piped");
        // What comes back says that it is where it should be.
        let echoed = input.write_all(b".").and_then(|()| {
            let mut byte = [0];
            std::io::Read::read_exact(keeper.stdout.as_mut().expect("it is piped"), &mut byte)
        });
        echoed.map_err(|why| format!("{} does not run: {why}", shown(&command)))?;
        Ok(Namespace { keeper, _input: Some(input) })
    }

    fn nsenter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.keeper.id())).arg("--");
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ended = self.keeper.kill();
        let _status = self.keeper.wait();
    }
}

/// Commands of `ip`, one a line.
fn batch(namespace: Option<&Namespace>, lines: &str) -> Result<(), String> {
    let mut command = match namespace {
        Some(namespace) => {
            let mut command = namespace.nsenter();
            command.arg("ip");
            command
        }
        None => Command::new("ip"),
    };
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut run = || {
        let mut child = command.spawn()?;
        child.stdin.take().expect("it is piped").write_all(lines.as_bytes())?;
        child.wait_with_output()
    };
    match run() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(format!("ip {}: {}", lines.trim_end(), said.trim_end()))
        }
        Err(why) => Err(format!("ip cannot be run: {why}")),
    }
}

fn quiet(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
