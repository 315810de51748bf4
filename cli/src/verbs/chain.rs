//! Composes a process from the crates of broker and relay: their nodes on one reactor thread, HTTP on threads of its own.
//! Used by the daemon, `run`, `serve`, and `relay run`.

use crate::Context;
use crate::args::manage::RelayRunArgs;
use crate::config::typed::first_missing;
use crate::config::{Config, EndpointConfig, ShapeConfig};
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use crate::limits::PRIVATE_STOP_TIMEOUT;
use pf_broker::{
    BrokerConfig, BrokerError, BrokerHandle, BrokerNode, HttpConfig, HttpServer, Identity, RelayListen,
};
use pf_protocol::ticket::SlotPlan;
use pf_relay::{Accounts, BrokerLink, News, RelayHandle, RelayNode, RelayOptions, Scaling, Shape};
use pf_transport::{CloseReason, Reactor, TransportError};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// What a chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The daemon of this host: blocks outlive it, the next one takes them over.
    Daemon,
    /// One command or one program: its blocks end with it.
    Private,
}

/// Broker and relays, running.
pub struct Chain {
    kind: Kind,
    broker: BrokerHandle,
    relays: Vec<RelayHandle>,
    http: HttpServer,
    reactor: Option<JoinHandle<std::result::Result<(), TransportError>>>,
    /// Closed by the reactor's thread when it ends, for whatever reason.
    reactor_gone: tokio::sync::oneshot::Receiver<()>,
}

/// Whether another broker has the folder.
fn held(error: &BrokerError) -> bool {
    matches!(error, BrokerError::Store(pf_store::StoreError::Held { .. }))
}

fn broker_error(error: BrokerError) -> CliError {
    let hint = error.hint();
    let refused = held(&error)
        || matches!(
            error,
            BrokerError::Served { .. } | BrokerError::Unsafe { .. } | BrokerError::Listen { .. }
        );
    let exit = if refused { Exit::Refused } else { Exit::Internal };
    let error = CliError::new(exit, "start the broker").because(error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

impl Chain {
    /// Starts broker and relays. When it returns the socket is there; requests are answered as soon as the log is replayed.
    pub fn start(config: &Config, kind: Kind) -> Result<Chain> {
        let host = host_name();
        let mut broker_config = BrokerConfig::new(config.places.durable.join("log"), &user_name(), &host);
        broker_config.local_endpoints = config.endpoints.keys().cloned().collect();
        let (mut node, handle) = BrokerNode::open(&broker_config).map_err(broker_error)?;
        let allow = node.allow_list();
        let opened = open_relays(config, kind, &host, &mut node)?;
        let mut reactor = Reactor::new().map_err(reactor_error)?;
        let broker = reactor.add(Box::new(node));
        if let Some(listen) = relay_listen(config)? {
            let (addresses, key) =
                pf_broker::listen_for_relays(&mut reactor, broker, allow, &listen).map_err(broker_error)?;
            tracing::info!(
                addresses = addresses.join(" "),
                key = key.to_z85(),
                "relays of other hosts are let in"
            );
        }
        let mut relays = Vec::new();
        for (node, handle) in opened {
            let relay = reactor.add(Box::new(node));
            reactor.pair(broker, relay);
            relays.push(handle);
        }
        let (gone, reactor_gone) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("reactor".into()).spawn(move || {
            let ended = reactor.run();
            drop(gone);
            ended
        });
        let thread = thread.map_err(|e| io_error("start the reactor's thread", e))?;
        let http = match HttpServer::start(handle.clone(), &http_config(config, &host)) {
            Ok(http) => http,
            Err(error) => {
                handle.stop();
                // The error that stopped it is the one to tell.
                let _ = thread.join();
                return Err(broker_error(error));
            }
        };
        if let Some((address, identity)) = http.tls() {
            tracing::info!(%address, fingerprint = identity.fingerprint(), "clients of other hosts are served");
        }
        Ok(Chain { kind, broker: handle, relays, http, reactor: Some(thread), reactor_gone })
    }

    /// The broker's socket.
    pub fn socket(&self) -> &Path {
        self.http.socket_path()
    }

    /// Waits until the broker was asked to end, or gave up.
    pub async fn ended(&mut self) {
        let mut asked = self.broker.shutdown_asked();
        tokio::select! {
            // The sender lives in our own handle: an error cannot come before the end.
            _ = asked.wait_for(|asked| *asked) => {}
            _ = &mut self.reactor_gone => {}
        }
    }

    /// Ends the relays and their blocks: nothing new is started, and what runs is killed after `grace`. The broker goes on.
    pub async fn end_relays(&mut self, grace: Duration) {
        if !grace.is_zero() {
            self.relays.iter().for_each(|relay| relay.stop(false));
            if tokio::time::timeout(grace, self.relays_ended()).await.is_ok() {
                return;
            }
        }
        self.relays.iter().for_each(|relay| relay.stop(true));
        if tokio::time::timeout(PRIVATE_STOP_TIMEOUT, self.relays_ended()).await.is_err() {
            tracing::warn!("the relay does not end; what it started is left to its leases");
        }
    }

    async fn relays_ended(&mut self) {
        for relay in &mut self.relays {
            relay.ended().await;
        }
    }

    /// Ends it in order. Private chains end their blocks first.
    pub async fn stop(mut self) -> Result<()> {
        if self.kind == Kind::Private {
            self.end_relays(Duration::ZERO).await;
        }
        let Chain { broker, http, reactor, .. } = self;
        let ended = tokio::task::spawn_blocking(move || {
            http.stop();
            broker.stop();
            let ended = reactor.map_or(Ok(Ok(())), JoinHandle::join);
            (ended, broker.failure())
        });
        let (ended, failure) = ended.await.map_err(|e| CliError::internal("end the broker").because(e))?;
        if let Some(why) = failure {
            return Err(CliError::internal("the broker gave up")
                .because(why)
                .hint("nothing acknowledged is lost: mend it, then `pf broker start`"));
        }
        match ended {
            Ok(ended) => ended.map_err(reactor_error),
            Err(_) => Err(CliError::internal("the reactor's thread panicked; its message is above")),
        }
    }
}

fn reactor_error(error: TransportError) -> CliError {
    CliError::internal("run the links").because(error)
}

/// The relays of all endpoints. One that cannot be served does not keep a daemon from serving the others: the broker tells why.
fn open_relays(
    config: &Config,
    kind: Kind,
    host: &str,
    broker: &mut BrokerNode,
) -> Result<Vec<(RelayNode, RelayHandle)>> {
    let mut opened = Vec::new();
    for endpoint in config.endpoints.values() {
        let options = relay_options(config, endpoint, host, BrokerLink::Paired);
        // A private chain is for this process alone: if it is killed, nobody looks after its blocks.
        let blocks_end_with = (kind == Kind::Private).then(std::process::id);
        let relay = options.and_then(|options| open_relay(RelayOptions { blocks_end_with, ..options }));
        match (relay, kind) {
            (Ok(relay), _) => opened.push(relay),
            (Err(error), Kind::Private) => return Err(error),
            (Err(error), Kind::Daemon) => {
                let why = error.one_line();
                tracing::error!(endpoint = endpoint.name, why, "an endpoint is not served");
                broker.cannot_serve(&endpoint.name, why);
            }
        }
    }
    Ok(opened)
}

fn open_relay(options: RelayOptions) -> Result<(RelayNode, RelayHandle)> {
    let name = options.endpoint.clone();
    RelayNode::open(options)
        .map_err(|e| CliError::internal(format!("start the relay of endpoint {name}")).because(e))
}

/// Everything that a relay is told.
fn relay_options(
    config: &Config,
    endpoint: &EndpointConfig,
    host: &str,
    broker: BrokerLink,
) -> Result<RelayOptions> {
    let program = std::env::current_exe().map_err(|e| io_error("find the program pf", e))?;
    let name = &endpoint.name;
    let places = &config.places;
    let alone = matches!(broker, BrokerLink::Dial { .. });
    refuse_unready(config, name)?;
    let slots = SlotPlan {
        reserved_cores: endpoint.reserved_cores.clone(),
        cores_override: endpoint.cores,
        gpus_override: endpoint.gpus,
    };
    Ok(RelayOptions {
        endpoint: name.clone(),
        broker,
        scaling: Scaling {
            init_blocks: endpoint.blocks_init,
            min_blocks: endpoint.blocks_min,
            max_blocks: endpoint.blocks_max,
            parallelism_milli: endpoint.parallelism_milli,
            idle_ms: endpoint.idle_ms,
            node_ms_max: endpoint
                .node_hours_max_milli
                .map(|n| n.saturating_mul(pf_relay::NODE_MS_A_MILLI_HOUR)),
            shapes: endpoint.shapes.iter().map(|shape| block_shape(endpoint, shape, &slots)).collect(),
            failures_max: endpoint.failures,
            backoff_ms: endpoint.backoff_ms,
            ..Scaling::default()
        },
        provider: endpoint.provider.clone(),
        dialect: endpoint.dialect.clone(),
        asks: endpoint.shapes.iter().map(|shape| (shape.name.clone(), shape.asks.clone())).collect(),
        poll_ms: endpoint.poll_ms,
        submit_ms: endpoint.submit_ms,
        rates_dir: places.durable.join("scheduler").join(&endpoint.provider),
        launcher: endpoint.launcher.clone(),
        program,
        state_dir: relay_state(config, name),
        blocks_dir: places.shared.join("blocks").join(name),
        output_dir: places.output.join(name),
        work_dir: places.output.join(name).join("work"),
        local_dir: None,
        python: endpoint.python.clone(),
        slots,
        listen: listen_for_managers(endpoint)?,
        ports: endpoint.ports,
        user: user_name(),
        host: host.into(),
        takeover: false,
        alone,
        blocks_end_with: None,
    })
}

/// Says what the machine's profile requires and nobody set: its scheduler would refuse every block.
fn refuse_unready(config: &Config, name: &str) -> Result<()> {
    let Some(found) = config.settings.profiles.get(name) else { return Ok(()) };
    let Some(missing) = first_missing(&config.settings, name, &found.profile.requires) else { return Ok(()) };
    let error =
        CliError::usage(format!("endpoint {name}: {} refuses jobs without {missing}", found.profile.title));
    let profile = config.settings.values.get(&format!("endpoints.{name}.profile"));
    let file = profile.map_or_else(|| found.from(), |(_, origin)| origin.to_string());
    Err(error.hint(format!("set endpoints.{name}.{missing} (profile {}, chosen at {file})", found.name)))
}

/// Addresses at which the managers of an endpoint find their relay: loopback where they all run on this host.
pub fn listen_for_managers(endpoint: &EndpointConfig) -> Result<Vec<String>> {
    if !endpoint.interfaces.is_empty() {
        return addresses_of(&endpoint.interfaces);
    }
    if endpoint.launcher == "local" {
        return Ok(vec!["127.0.0.1".into()]);
    }
    let found = pf_relay::addresses::private_addresses()
        .map_err(|e| io_error("list the network interfaces of this host", e))?;
    if found.is_empty() {
        let error = CliError::usage("this host has no private address at which its nodes could reach it");
        return Err(error.hint(format!("set endpoints.{}.interfaces", endpoint.name)));
    }
    Ok(found)
}

/// Addresses of interfaces that are named, `*` standing for anything; what is no name of one is an address itself. A pattern may match
/// nothing as long as something does: profiles name the interfaces of several kinds of login nodes.
fn addresses_of(interfaces: &[String]) -> Result<Vec<String>> {
    let all = pf_relay::addresses::by_interface()
        .map_err(|e| io_error("list the network interfaces of this host", e))?;
    let mut found = Vec::new();
    for wanted in interfaces {
        let own = all.iter().filter(|(name, _)| pf_site_profiles::detect::matches(wanted, name));
        let before = found.len();
        found.extend(own.map(|(_, ip)| ip.to_string()));
        if found.len() == before && !wanted.contains('*') {
            if wanted.parse::<std::net::IpAddr>().is_err() {
                return Err(no_interface(wanted, &all));
            }
            found.push(wanted.clone());
        }
    }
    if found.is_empty() {
        return Err(no_interface(&interfaces.join(", "), &all));
    }
    Ok(found)
}

/// A shape as the relay's core knows it.
fn block_shape(endpoint: &EndpointConfig, shape: &ShapeConfig, slots: &SlotPlan) -> Shape {
    let local = endpoint.provider == "local";
    Shape {
        name: shape.name.clone(),
        max_blocks: shape.blocks_max,
        nodes: shape.nodes_per_block,
        walltime_ms: shape.walltime_ms,
        accounts: match shape.accounts.is_empty() {
            _ if local => Accounts::Unused,
            true => Accounts::Any(shape.asks.account.clone()),
            false => Accounts::Only(shape.accounts.clone()),
        },
        node: local.then(|| pf_pilot::local_capacity(slots)),
    }
}

fn no_interface(wanted: &str, all: &[(String, std::net::IpAddr)]) -> CliError {
    let names = all.iter().map(|(name, _)| name.as_str());
    CliError::usage(format!("this host has no interface {wanted:?} with an address"))
        .hint(crate::config::layers::nearest_hint(wanted, names, "interface"))
}

fn relay_state(config: &Config, endpoint: &str) -> PathBuf {
    config.places.durable.join("relays").join(endpoint)
}

fn http_config(config: &Config, host: &str) -> HttpConfig {
    HttpConfig {
        local_dir: config.places.local.clone(),
        tls_listen: config.broker.listen.clone(),
        tls_names: tls_names(config, host),
        tls_dir: config.places.durable.clone(),
    }
}

/// Names for the certificate: this host, and the addresses that it serves.
fn tls_names(config: &Config, host: &str) -> Vec<String> {
    let addresses = config.broker.listen.iter().filter_map(|a| a.rsplit_once(':'));
    let mut names: Vec<String> =
        addresses.map(|(host, _)| host.trim_matches(['[', ']']).to_owned()).collect();
    names.insert(0, host.to_owned());
    names.dedup();
    names
}

/// Where relays of other hosts come in, if anywhere.
fn relay_listen(config: &Config) -> Result<Option<RelayListen>> {
    let mut listen: Option<RelayListen> = None;
    for address in &config.broker.listen_relays {
        let wrong = || CliError::usage(format!("broker.listen_relays: {address:?} is not ADDRESS:PORT"));
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        match &mut listen {
            None => {
                listen = Some(RelayListen {
                    hosts: vec![host.into()],
                    port,
                    key_dir: config.places.durable.clone(),
                })
            }
            Some(listen) if listen.port == port => listen.hosts.push(host.into()),
            Some(listen) => {
                return Err(CliError::usage(format!(
                    "broker.listen_relays has ports {} and {port}",
                    listen.port
                ))
                .hint("use one port for all addresses"));
            }
        }
    }
    Ok(listen)
}

/// Name of this host.
pub fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |name| name.to_string_lossy().into_owned())
}

/// Name of the user that this process is.
pub fn user_name() -> String {
    let uid = nix::unistd::geteuid();
    let known = nix::unistd::User::from_uid(uid).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

/// The certificate of this host's broker, made if there is none yet.
pub fn certificate(config: &Config) -> Result<String> {
    config.places.prepare()?;
    let identity = Identity::load_or_generate(&config.places.durable, &tls_names(config, &host_name()));
    Ok(identity.map_err(broker_error)?.certificate_pem)
}

/// The key by which relays of other hosts know this host's broker.
pub fn broker_key(config: &Config) -> Result<String> {
    config.places.prepare()?;
    let key = pf_broker::relay_facing_key(&config.places.durable).map_err(broker_error)?;
    Ok(key.to_z85())
}

/// The key by which a broker elsewhere knows this host's relay of an endpoint.
pub fn relay_key(config: &Config, endpoint: &str) -> Result<String> {
    find_endpoint(config, endpoint)?;
    config.places.prepare()?;
    let state = relay_state(config, endpoint);
    std::fs::create_dir_all(&state).map_err(|e| io_error(format!("make {}", state.display()), e))?;
    pf_relay::public_key(&state)
        .map_err(|e| CliError::internal(format!("make the key of endpoint {endpoint}")).because(e))
}

fn find_endpoint<'a>(config: &'a Config, name: &str) -> Result<&'a EndpointConfig> {
    config.endpoints.get(name).ok_or_else(|| {
        let known = config.endpoints.keys().map(String::as_str);
        CliError::new(Exit::NotFound, format!("endpoint {name} is not configured on this host"))
            .hint(crate::config::layers::nearest_hint(name, known, "endpoint"))
    })
}

/// `pf relay run`: one relay, dialling its broker, until it is told to end. Its blocks outlive it.
pub async fn run_relay(context: &Context, args: &RelayRunArgs) -> Result<()> {
    let config = &context.config;
    let endpoint = find_endpoint(config, &args.endpoint)?;
    config.places.prepare()?;
    let link = BrokerLink::Dial { addresses: args.broker.clone(), server_key: args.broker_key.clone() };
    let mut options = relay_options(config, endpoint, &host_name(), link)?;
    options.takeover = args.takeover;
    let (node, mut handle) = open_relay(options)?;
    let key = relay_key(config, &args.endpoint)?;
    let mut reactor = Reactor::new().map_err(reactor_error)?;
    reactor.add(Box::new(node));
    // It ends with the process: a relay holds copies only, what matters is synced before it acts.
    std::thread::Builder::new()
        .name("reactor".into())
        .spawn(move || reactor.run())
        .map_err(|e| io_error("start the reactor's thread", e))?;
    context.output.say(format!("the relay of endpoint {} dials {}", args.endpoint, args.broker.join(", ")));
    let mut terminated = signal(SignalKind::terminate()).map_err(|e| io_error("watch for SIGTERM", e))?;
    let mut watcher = handle.clone();
    loop {
        tokio::select! {
            ended = handle.ended() => {
                if ended.ok {
                    return Ok(());
                }
                let error = CliError::new(Exit::Refused, format!("the relay of endpoint {} ended", args.endpoint));
                return Err(error.because(ended.reason));
            }
            news = watcher.news() => tell_of_link(context, &args.endpoint, &key, &news),
            _ = terminated.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// What becomes of the link to the broker; a failure with what may mend it.
fn tell_of_link(context: &Context, endpoint: &str, key: &str, news: &News) {
    let output = &context.output;
    match news {
        News::None => {}
        News::NotYet(reason) => output.say(format!("{reason}; goes on trying")),
        News::Serves(epoch) => output.say(format!("serves endpoint {endpoint} (epoch {})", epoch.0)),
        News::Down(reason) => {
            output.say(format!("not connected: {reason}; goes on trying"));
            match reason {
                CloseReason::Refused { .. } => output.say(format!(
                    "hint: where the broker runs: pf endpoint add {endpoint} --relay-key '{key}'"
                )),
                CloseReason::HandshakeFailed { .. } => {
                    output.say("hint: --broker-key is what `pf broker key` prints where the broker runs");
                }
                _ => {}
            }
        }
    }
}
