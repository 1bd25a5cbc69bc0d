//! The last rung: a plain tracepoint, for kernels without type information or without a ring buffer.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject};
use zerocopy::IntoBytes;

use super::attached::{Own, Probe, Skeleton};
use super::counts::ProbeFds;
use super::features::kernel_has_kprobes;
use super::instructions::{self, Fitting};
use super::messages::explain;
use super::object::{ACCEPT_GRAFT, DESTROY, FreePlaces, wanted};
use super::perf_event;
use super::refusal::{Refusal, Stage};
use super::remedy::warn_of_untold_attempts;
use crate::config::{ProbeSettings, Rung};
use crate::probe::skeletons::tracepoint::TcpEventTracepointSkelBuilder;
use crate::probe::tracefs::{Format, TraceFs};
use crate::sys::log::{self, Level};
use crate::sys::pid_namespace::PidNamespace;
use crate::sys::shared::tcp_tracepoint as Layout;

/// Where the changes of state are: the later name first.
const CHANGES: [(&str, &str); 2] = [("sock", "inet_sock_set_state"), ("tcp", "tcp_set_state")];

impl Layout {
    /// Where the fields are; the rest is 0. The error names the first one that is missing, or has another size than it should.
    fn of(format: &Format) -> Result<Self, &'static str> {
        let at = |name: &'static str, size| match format.field(name) {
            Some(field) if field.size == size => Ok(field.offset),
            _ => Err(name),
        };
        let pointer_size = u16::try_from(size_of::<usize>()).expect("it is 8");
        let protocol = format.field("protocol").filter(|field| [1, 2].contains(&field.size));
        Ok(Self {
            sk: at("skaddr", pointer_size)?,
            old_state: at("oldstate", 4)?,
            new_state: at("newstate", 4)?,
            local_port: at("sport", 2)?,
            remote_port: at("dport", 2)?,
            local_v4: at("saddr", 4)?,
            remote_v4: at("daddr", 4)?,
            local_v6: at("saddr_v6", 16)?,
            remote_v6: at("daddr_v6", 16)?,
            family: at("family", 2).unwrap_or(0),
            protocol: protocol.map_or(0, |field| field.offset),
            protocol_size: protocol.map_or(0, |field| if field.size == 2 { 2 } else { 1 }),
            reset_sk: 0,
            destroyed_sk: 0,
            wanted: 0,
            detailed: 0,
            reserved: [0; 3],
            pid_namespace_device: 0,
            pid_namespace: 0,
        })
    }
}

/// Attaches, with the kprobe that sees accepts, and without where that cannot be had.
pub(super) fn attach<'obj>(settings: &ProbeSettings, places: &mut FreePlaces<'obj>) -> Result<Probe<'obj>, Refusal> {
    if settings.filter.netns.is_some() || settings.filter.cgroup.is_some() {
        return Err(Refusal::new(Stage::Filter, "it knows neither network namespaces nor cgroups"));
    }
    let tracefs = perf_event::open_tracefs()?;
    let ids = Ids::find();
    let mut attach = |with_accepts| {
        let probe = try_attach(with_accepts, &ids, &tracefs, settings, places.next()?).inspect_err(|refusal| {
            log::line(Level::Info, format_args!("tracepoint, accepts {with_accepts}, refused: {refusal}"));
        })?;
        tell_losses(settings, with_accepts, &ids);
        Ok(probe)
    };
    if kernel_has_kprobes() { attach(true).or_else(|_| attach(false)) } else { attach(false) }
}

/// Which process IDs are told.
struct Ids {
    /// `None`: those of the initial PID namespace.
    namespace: Option<PidNamespace>,
    /// Whether the kernel tells any of another one.
    are_known: bool,
}

impl Ids {
    fn find() -> Self {
        let namespace = PidNamespace::find();
        Self { namespace, are_known: namespace.is_none() || instructions::knows_namespaces() }
    }
}

fn try_attach<'obj>(
    with_accepts: bool,
    ids: &Ids,
    tracefs: &TraceFs,
    settings: &ProbeSettings,
    place: &'obj mut MaybeUninit<OpenObject>,
) -> Result<Probe<'obj>, Refusal> {
    let mut open = explain(Stage::Open, || TcpEventTracepointSkelBuilder::default().open(place))?;
    let resets = tracefs.format("tcp", "tcp_receive_reset").ok();
    let reset_sk = resets.and_then(|format| format.field("skaddr"));
    let destroyed = if settings.wanted.closes { tracefs.format("tcp", DESTROY).ok() } else { None };
    let destroyed_sk = destroyed.and_then(|format| format.field("skaddr"));
    open.progs.let_go.set_autoload(destroyed_sk.is_some());
    open.progs.accept_graft.set_autoload(with_accepts);
    open.progs.receive_reset.set_autoload(reset_sk.is_some());
    let sees_execs = instructions::knows_stacks();
    open.progs.note_exec.set_autoload(sees_execs);
    let knows_namespaces = ids.namespace.is_some() && ids.are_known;
    let fitting = Fitting { knows_namespaces, knows_stacks: sees_execs, ..Fitting::default() };
    let skeleton = fitting.during(|| explain(Stage::Load, || open.load()))?;

    let (category, name, format) = find_changes(tracefs)?;
    let layout = Layout::of(&format).map_err(|field| {
        Refusal::new(Stage::Tracepoint, format!("the tracepoint {category}:{name} has no such {field}"))
    })?;
    let mut layout = Layout {
        pid_namespace_device: ids.namespace.map_or(0, |namespace| namespace.device),
        pid_namespace: ids.namespace.map_or(0, |namespace| namespace.inode.into()),
        reset_sk: reset_sk.map_or(0, |field| field.offset),
        wanted: wanted(settings),
        detailed: settings.detailed.into(),
        ..layout
    };
    let maps = &skeleton.maps;
    let tell = |layout: &Layout| {
        explain(Stage::Fill, || maps.layout.update(&0u32.to_ne_bytes(), layout.as_bytes(), MapFlags::ANY))
    };
    tell(&layout)?;

    let progs = &skeleton.progs;
    let mut links = Vec::new();
    let mut events = Vec::new();
    // Before the main program, so that it misses nothing of what they tell.
    if with_accepts {
        links.push(explain(Stage::Kprobe, || progs.accept_graft.attach_kprobe(false, ACCEPT_GRAFT))?);
    }
    if reset_sk.is_some() {
        match perf_event::attach(&progs.receive_reset, tracefs, "tcp", "tcp_receive_reset") {
            Ok(attachment) => {
                links.push(attachment.link);
                events.push(attachment.event);
            }
            Err(refusal) => log::line(Level::Info, format_args!("resets are not seen: {refusal}")),
        }
    }
    if sees_execs {
        match perf_event::attach(&progs.note_exec, tracefs, "sched", "sched_process_exec") {
            Ok(attachment) => {
                links.push(attachment.link);
                events.push(attachment.event);
            }
            Err(refusal) => log::line(Level::Info, format_args!("execs are not seen: {refusal}")),
        }
    }
    if let Some(attachment) = perf_event::attach_to_processors(&progs.processors_change, tracefs) {
        links.push(attachment.link);
        events.push(attachment.event);
    }
    if let Some(field) = destroyed_sk {
        match perf_event::attach(&progs.let_go, tracefs, "tcp", DESTROY) {
            Ok(attachment) => {
                links.push(attachment.link);
                events.push(attachment.event);
                layout.destroyed_sk = field.offset;
                tell(&layout)?;
            }
            Err(refusal) => log::line(Level::Info, format_args!("who lets go of sockets is not seen: {refusal}")),
        }
    }
    let main = perf_event::attach(&progs.set_state, tracefs, category, name)?;
    let fds = ProbeFds {
        main: progs.set_state.as_fd().as_raw_fd(),
        main_link: main.link.as_fd().as_raw_fd(),
        owner_sets: None,
        owners: maps.owners.as_fd().as_raw_fd(),
        lost: Some(maps.lost.as_fd().as_raw_fd()),
    };
    links.push(main.link);
    events.push(main.event);
    Ok(Probe {
        links,
        events,
        holders: None,
        skeleton: ManuallyDrop::new(Skeleton::Tracepoint(Box::new(skeleton))),
        variables: None,
        rung: Rung::Tracepoint,
        fds,
        own: Own::default(),
    })
}

fn find_changes(tracefs: &TraceFs) -> Result<(&'static str, &'static str, Format), Refusal> {
    let read = |(category, name)| match tracefs.format(category, name) {
        Ok(format) => Ok((category, name, format)),
        Err(error) => Err(perf_event::unreadable(category, name, &error)),
    };
    let [later, earlier] = CHANGES;
    read(later).or_else(|refusal| read(earlier).map_err(|other| refusal.and(&other)))
}

/// Says once what this rung cannot know. Whoever has asked for it knows.
fn tell_losses(settings: &ProbeSettings, with_accepts: bool, ids: &Ids) {
    warn_of_untold_attempts(settings);
    let level = if settings.rung.is_some() { Level::Info } else { Level::Warn };
    let accepts = if with_accepts { "" } else { "accepts, " };
    let of_processes = match ids {
        Ids { namespace: None, .. } => "",
        Ids { are_known: true, .. } => "process IDs in other PID namespaces than this one, ",
        Ids { are_known: false, .. } => "process IDs in this PID namespace (Linux 5.7), ",
    };
    log::line(
        level,
        format_args!(
            "attached by a plain tracepoint: {accepts}{of_processes}inodes, network namespaces, cgroups and most errors \
             are not known, and bytes are of this network namespace only"
        ),
    );
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    const FIELDS: [(&str, u16); 9] = [
        ("const void * skaddr", 8),
        ("int oldstate", 4),
        ("int newstate", 4),
        ("__u16 sport", 2),
        ("__u16 dport", 2),
        ("__u8 saddr[4]", 4),
        ("__u8 daddr[4]", 4),
        ("__u8 saddr_v6[16]", 16),
        ("__u8 daddr_v6[16]", 16),
    ];

    fn format(fields: &[(&str, u16)]) -> Format {
        let mut text = String::new();
        let mut offset = 8;
        for (declaration, size) in fields {
            writeln!(text, "\tfield:{declaration};\toffset:{offset};\tsize:{size};\tsigned:0;").unwrap();
            offset += size;
        }
        Format::parse(&text)
    }

    #[test]
    fn the_layout_is_what_the_format_says() {
        let layout = Layout::of(&format(&FIELDS)).unwrap();
        assert_eq!((layout.sk, layout.old_state, layout.new_state), (8, 16, 20));
        assert_eq!((layout.local_port, layout.remote_port, layout.local_v4, layout.remote_v4), (24, 26, 28, 32));
        assert_eq!((layout.local_v6, layout.remote_v6), (36, 52));
        assert_eq!((layout.family, layout.protocol, layout.protocol_size), (0, 0, 0));

        let later = [FIELDS.as_slice(), &[("__u16 family", 2), ("__u8 protocol", 1)]].concat();
        let layout = Layout::of(&format(&later)).unwrap();
        assert_eq!((layout.family, layout.protocol, layout.protocol_size), (68, 70, 1));
        let latest = [FIELDS.as_slice(), &[("__u16 family", 2), ("__u16 protocol", 2)]].concat();
        assert_eq!(Layout::of(&format(&latest)).unwrap().protocol_size, 2);
        assert_eq!(size_of::<Layout>(), 48);
    }

    #[test]
    fn a_field_that_is_missing_or_of_another_size_is_named() {
        for at in 0..FIELDS.len() {
            let mut fields = FIELDS;
            let name = fields[at].0.rsplit(' ').next().unwrap().split('[').next().unwrap();
            fields[at].1 += 1;
            assert_eq!(Layout::of(&format(&fields)), Err(name));
        }
        assert_eq!(Layout::of(&Format::default()), Err("skaddr"));
    }
}
