//! What the user can do about a kernel that refused: by the step, by its errno, and by what the host lets this process do.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::fds::MOST_OF_START;
use super::refusal::{Part, Refusal, Stage};
use super::types::KERNEL_BTF;
use crate::config::{ProbeSettings, Rung};
use crate::error::{Error, NO_DESCRIPTORS};
use crate::sys::descriptors;
use crate::sys::log::{self, Level};
use crate::sys::privilege::{self, Capability, FilteredCall};

/// Those that come first are the more likely to help, where several would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Remedy {
    MoreDescriptors,
    NoUserNamespace,
    OtherFilter,
    BpfCapabilities,
    /// A container's profile, or systemd's `SystemCallFilter`.
    SeccompProfile,
    PerfEventsForAll,
    NoLockdown,
    TracefsCapability,
    /// Whoever has `CAP_SYS_ADMIN` mounts it without being told (`tracefs.rs`).
    MountTracefs,
    OtherRung,
    BtfFile,
    MoreLockedMemory,
    DebugLog,
}

/// What keeps this process from watching, or may do so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    FewDescriptors,
    UserNamespace,
    NoBpfCapabilities,
    SeccompRefusesBpf,
    SeccompRefusesPerfEvents,
    PerfEventsRestricted,
    Lockdown,
    NoDacReadSearch,
    /// `tp_btf` was asked for.
    NoTypesForTpBtf,
    /// And no file takes the place of the kernel's.
    NoTypes,
    LittleLockedMemory,
}

/// The obstacles on this host.
struct Host(Vec<Obstacle>);

impl Host {
    fn look(settings: &ProbeSettings) -> Self {
        let lacks = |capabilities: &[Capability]| privilege::missing(capabilities).is_some();
        let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
        let has_types = Path::new(KERNEL_BTF).exists();
        let all = [
            (Obstacle::FewDescriptors, descriptors::are_few(MOST_OF_START)),
            (Obstacle::UserNamespace, privilege::in_user_namespace()),
            (Obstacle::NoBpfCapabilities, lacks(&[Capability::BPF, Capability::PERFMON])),
            (Obstacle::SeccompRefusesBpf, privilege::seccomp_refuses(FilteredCall::Bpf)),
            (Obstacle::SeccompRefusesPerfEvents, privilege::seccomp_refuses(FilteredCall::PerfEventOpen)),
            (Obstacle::PerfEventsRestricted, privilege::perf_events_are_restricted()),
            (Obstacle::Lockdown, lockdown.contains("[confidentiality]")),
            (Obstacle::NoDacReadSearch, lacks(&[Capability::DAC_READ_SEARCH])),
            (Obstacle::NoTypesForTpBtf, settings.rung == Some(Rung::TpBtf) && !has_types),
            (Obstacle::NoTypes, settings.btf.is_none() && !has_types),
            (Obstacle::LittleLockedMemory, memlock_is_small()),
        ];
        Self(all.into_iter().filter(|(_, is_there)| *is_there).map(|(obstacle, _)| obstacle).collect())
    }

    fn has(&self, obstacle: Obstacle) -> bool {
        self.0.contains(&obstacle)
    }
}

impl Remedy {
    /// For a start that failed.
    fn of_all(refusals: &[Refusal], host: &Host) -> Self {
        let by_refusals = refusals.iter().map(|refusal| Self::of(refusal.stage, refusal.errno, host));
        let by_host = host.0.iter().filter_map(|obstacle| Self::against(*obstacle));
        by_refusals.chain(by_host).min().unwrap_or(Self::DebugLog)
    }

    /// For one refusal.
    fn of(stage: Stage, errno: i32, host: &Host) -> Self {
        match (stage, errno) {
            (_, libc::EMFILE) => Self::MoreDescriptors,
            (Stage::Filter, _) => Self::OtherFilter,
            (Stage::Kprobe | Stage::PerfEvent, _) if host.has(Obstacle::SeccompRefusesPerfEvents) => {
                Self::SeccompProfile
            }
            (Stage::Kprobe | Stage::PerfEvent | Stage::TraceFs | Stage::Tracepoint, libc::EACCES)
                if host.has(Obstacle::PerfEventsRestricted) =>
            {
                Self::PerfEventsForAll
            }
            (Stage::TraceFs, _) if host.has(Obstacle::NoDacReadSearch) => Self::TracefsCapability,
            (Stage::TraceFs, _) => Self::MountTracefs,
            (_, libc::EPERM | libc::ENOMEM) if host.has(Obstacle::LittleLockedMemory) => Self::MoreLockedMemory,
            _ => Self::DebugLog,
        }
    }

    /// For what refuses every start, whatever step it shows at. libbpf goes on where it gets no descriptor for some small thing,
    /// and fails for another reason later.
    fn against(obstacle: Obstacle) -> Option<Self> {
        match obstacle {
            Obstacle::FewDescriptors => Some(Self::MoreDescriptors),
            Obstacle::UserNamespace => Some(Self::NoUserNamespace),
            Obstacle::NoBpfCapabilities => Some(Self::BpfCapabilities),
            Obstacle::SeccompRefusesBpf => Some(Self::SeccompProfile),
            Obstacle::Lockdown => Some(Self::NoLockdown),
            Obstacle::NoTypesForTpBtf => Some(Self::OtherRung),
            Obstacle::NoTypes => Some(Self::BtfFile),
            Obstacle::SeccompRefusesPerfEvents
            | Obstacle::PerfEventsRestricted
            | Obstacle::NoDacReadSearch
            | Obstacle::LittleLockedMemory => None,
        }
    }

    /// In words.
    fn text(self) -> &'static str {
        match self {
            Self::MoreDescriptors => NO_DESCRIPTORS,
            Self::NoUserNamespace => "run outside of user namespaces: capabilities in one do not count for BPF",
            Self::OtherFilter => "take netns and cgroup out of the filter, or use a kernel with type information",
            Self::BpfCapabilities => "run as root, or grant CAP_BPF and CAP_PERFMON (before Linux 5.8: CAP_SYS_ADMIN)",
            Self::SeccompProfile => {
                "a seccomp filter refuses system calls: allow bpf and perf_event_open in the profile of the container, \
                 or the SystemCallFilter of the service"
            }
            Self::PerfEventsForAll => "run as root, grant CAP_SYS_ADMIN, or set kernel.perf_event_paranoid to 2",
            Self::NoLockdown => {
                "the kernel is locked down (confidentiality): boot it with lockdown=integrity or without lockdown"
            }
            Self::TracefsCapability => "run as root, or grant CAP_DAC_READ_SEARCH: tracefs is root's own",
            Self::MountTracefs => "mount tracefs: mount -t tracefs none /sys/kernel/tracing",
            Self::OtherRung => "leave TCPEVENT_PROBE at auto: tp_btf needs a kernel with CONFIG_DEBUG_INFO_BTF",
            Self::BtfFile => {
                "the kernel has no type information (CONFIG_DEBUG_INFO_BTF): set TCPEVENT_BTF to a BTF file for it"
            }
            Self::MoreLockedMemory => {
                "raise the limit of locked memory (ulimit -l), which kernels before 5.11 charge for BPF maps"
            }
            Self::DebugLog => "set TCPEVENT_LOG=debug to see what the kernel refused",
        }
    }

    /// In short.
    fn errno(self) -> i32 {
        match self {
            Self::MoreDescriptors => libc::EMFILE,
            Self::NoUserNamespace
            | Self::BpfCapabilities
            | Self::SeccompProfile
            | Self::PerfEventsForAll
            | Self::NoLockdown
            | Self::TracefsCapability => libc::EPERM,
            Self::MoreLockedMemory => libc::ENOMEM,
            Self::OtherFilter | Self::MountTracefs | Self::OtherRung | Self::BtfFile | Self::DebugLog => {
                libc::EOPNOTSUPP
            }
        }
    }
}

/// The error for a start that failed, with the rung of each refusal.
pub(super) fn refused_by_all(settings: &ProbeSettings, refusals: Vec<(Rung, Refusal)>) -> Error {
    let causes: Vec<_> = refusals.iter().map(|(rung, refusal)| format!("{}: {refusal}", rung.name())).collect();
    let refusals: Vec<_> = refusals.into_iter().map(|(_, refusal)| refusal).collect();
    error(settings, causes.join("; "), &refusals)
}

/// The error for a refusal.
pub fn refused(settings: &ProbeSettings, refusal: Refusal) -> Error {
    error(settings, refusal.to_string(), &[refusal])
}

fn error(settings: &ProbeSettings, cause: String, refusals: &[Refusal]) -> Error {
    let remedy = Remedy::of_all(refusals, &Host::look(settings));
    Error::Probe { cause, remedy: remedy.text(), errno: remedy.errno() }
}

/// Below what the maps take.
fn memlock_is_small() -> bool {
    const ENOUGH: u64 = 64 << 20;
    getrlimit(Resource::Memlock).current.is_some_and(|limit| limit < ENOUGH)
}

/// Accepts are not seen by a probe that is not told who lets go of a socket either, for these reasons among others. Where the
/// user can do something about it, that is worth a warning.
pub(super) fn warn_of_unseen_accepts(settings: &ProbeSettings, refusals: &[Refusal]) {
    const LOSS: &str = "accepts are not seen, and a connection that its peer resets may come without owner";

    let of_accepts: Vec<_> = refusals.iter().filter(|refusal| refusal.part == Part::Accept).collect();
    if of_accepts.is_empty() {
        return;
    }
    let host = Host::look(settings);
    let remedy = of_accepts.iter().map(|refusal| Remedy::of(refusal.stage, refusal.errno, &host)).min();
    if let Some(remedy @ (Remedy::SeccompProfile | Remedy::PerfEventsForAll)) = remedy {
        log::line(Level::Warn, format_args!("{LOSS}: {}", remedy.text()));
    }
}

/// Why the other rungs than those with a ring tell neither retries nor attempts that fail before a SYN.
const NEEDED_FOR_ATTEMPTS: &str = "that takes the probe kprobe or tp_btf, and Linux 5.8";

pub(super) const UNTOLD_UNSENT: &str = "attempts that fail before a SYN are not told";

pub(super) const UNSENT_BY_SYSCALL: &str = "attempts that fail before a SYN are told of the system call connect alone, not of io_uring \
     and MSG_FASTOPEN, and each system call of this host takes some 60 ns longer (the tracepoint sys_exit_connect)";

/// What is asked for of attempts, and this rung does not tell.
pub(super) fn warn_of_untold_attempts(settings: &ProbeSettings) {
    warn_of_untold_retries(settings, NEEDED_FOR_ATTEMPTS);
    if settings.wanted.unsent {
        log::line(Level::Warn, format_args!("{UNTOLD_UNSENT}: {NEEDED_FOR_ATTEMPTS}"));
    }
}

/// Retries are asked for, and this probe does not tell them.
pub(super) fn warn_of_untold_retries(settings: &ProbeSettings, why: impl Display) {
    if settings.wanted.retries {
        log::line(Level::Warn, format_args!("SYNs that are sent again are not told: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    const NO_ERRNO: i32 = 0;
    /// One that no remedy is for.
    const OTHER: i32 = libc::ESRCH;

    fn refusal(stage: Stage, errno: i32) -> Refusal {
        Refusal::by_system(stage, "", &io::Error::from_raw_os_error(errno))
    }

    /// Cases that come out otherwise.
    fn wrong(cases: &[(Stage, i32, &[Obstacle], Remedy)]) -> Vec<String> {
        let differences = cases.iter().filter_map(|(stage, errno, obstacles, expected)| {
            let remedy = Remedy::of_all(&[refusal(*stage, *errno)], &Host(obstacles.to_vec()));
            (remedy != *expected).then(|| format!("{stage:?}, {errno}, {obstacles:?}: {remedy:?}, not {expected:?}"))
        });
        differences.collect()
    }

    #[test]
    fn each_step_and_errno_has_its_remedy() {
        use Obstacle::{LittleLockedMemory, NoDacReadSearch, PerfEventsRestricted, SeccompRefusesPerfEvents};
        use libc::{EACCES, EMFILE, ENOENT, ENOMEM, EPERM};

        let wrong = wrong(&[
            (Stage::Load, EMFILE, &[], Remedy::MoreDescriptors),
            (Stage::TraceFs, EMFILE, &[NoDacReadSearch], Remedy::MoreDescriptors),
            (Stage::Kprobe, EMFILE, &[SeccompRefusesPerfEvents], Remedy::MoreDescriptors),
            (Stage::Filter, NO_ERRNO, &[], Remedy::OtherFilter),
            (Stage::Kprobe, EPERM, &[SeccompRefusesPerfEvents], Remedy::SeccompProfile),
            (Stage::PerfEvent, libc::ENOSYS, &[SeccompRefusesPerfEvents], Remedy::SeccompProfile),
            (Stage::Kprobe, EACCES, &[SeccompRefusesPerfEvents, PerfEventsRestricted], Remedy::SeccompProfile),
            (Stage::Load, EPERM, &[SeccompRefusesPerfEvents], Remedy::DebugLog),
            (Stage::Kprobe, EACCES, &[PerfEventsRestricted], Remedy::PerfEventsForAll),
            (Stage::PerfEvent, EACCES, &[PerfEventsRestricted], Remedy::PerfEventsForAll),
            (Stage::TraceFs, EACCES, &[PerfEventsRestricted, NoDacReadSearch], Remedy::PerfEventsForAll),
            (Stage::Tracepoint, EACCES, &[PerfEventsRestricted], Remedy::PerfEventsForAll),
            (Stage::Kprobe, OTHER, &[PerfEventsRestricted], Remedy::DebugLog),
            // The verifier's word.
            (Stage::Load, EACCES, &[PerfEventsRestricted], Remedy::DebugLog),
            (Stage::Kprobe, EACCES, &[], Remedy::DebugLog),
            (Stage::TraceFs, EACCES, &[NoDacReadSearch], Remedy::TracefsCapability),
            (Stage::TraceFs, ENOENT, &[], Remedy::MountTracefs),
            (Stage::TraceFs, EPERM, &[LittleLockedMemory], Remedy::MountTracefs),
            (Stage::Tracepoint, ENOENT, &[NoDacReadSearch], Remedy::DebugLog),
            (Stage::Load, EPERM, &[LittleLockedMemory], Remedy::MoreLockedMemory),
            (Stage::Load, ENOMEM, &[LittleLockedMemory], Remedy::MoreLockedMemory),
            (Stage::Buffer, EPERM, &[LittleLockedMemory], Remedy::MoreLockedMemory),
            (Stage::Load, OTHER, &[LittleLockedMemory], Remedy::DebugLog),
            (Stage::Load, ENOMEM, &[], Remedy::DebugLog),
            (Stage::Support, NO_ERRNO, &[], Remedy::DebugLog),
        ]);
        assert_eq!(wrong, [""; 0]);
    }

    #[test]
    fn what_refuses_every_start_has_its_remedy_at_each_step() {
        for stage in [Stage::Support, Stage::Types, Stage::Open, Stage::Load, Stage::Fill, Stage::Trace, Stage::Buffer]
        {
            let wrong = wrong(&[
                (stage, OTHER, &[Obstacle::FewDescriptors], Remedy::MoreDescriptors),
                (stage, OTHER, &[Obstacle::UserNamespace], Remedy::NoUserNamespace),
                (stage, OTHER, &[Obstacle::NoBpfCapabilities], Remedy::BpfCapabilities),
                (stage, OTHER, &[Obstacle::SeccompRefusesBpf], Remedy::SeccompProfile),
                (stage, OTHER, &[Obstacle::Lockdown], Remedy::NoLockdown),
                (stage, OTHER, &[Obstacle::NoTypesForTpBtf, Obstacle::NoTypes], Remedy::OtherRung),
                (stage, OTHER, &[Obstacle::NoTypes], Remedy::BtfFile),
                (stage, OTHER, &[], Remedy::DebugLog),
                // These are in the way of some steps alone.
                (stage, OTHER, &[Obstacle::SeccompRefusesPerfEvents], Remedy::DebugLog),
                (stage, OTHER, &[Obstacle::PerfEventsRestricted], Remedy::DebugLog),
                (stage, OTHER, &[Obstacle::NoDacReadSearch], Remedy::DebugLog),
                (stage, OTHER, &[Obstacle::LittleLockedMemory], Remedy::DebugLog),
            ]);
            assert_eq!(wrong, [""; 0]);
        }
    }

    #[test]
    fn of_several_remedies_the_likeliest_is_named() {
        let (kprobe, tracefs) = (refusal(Stage::Kprobe, libc::EACCES), refusal(Stage::TraceFs, libc::ENOENT));
        let filter = refusal(Stage::Filter, NO_ERRNO);
        for (refusals, obstacles, expected) in [
            (vec![&kprobe, &tracefs], vec![Obstacle::PerfEventsRestricted], Remedy::PerfEventsForAll),
            (vec![&kprobe, &tracefs], vec![], Remedy::MountTracefs),
            (vec![&kprobe, &tracefs], vec![Obstacle::Lockdown], Remedy::NoLockdown),
            (vec![&kprobe, &filter], vec![Obstacle::NoBpfCapabilities], Remedy::OtherFilter),
            (vec![&filter], vec![Obstacle::NoBpfCapabilities, Obstacle::UserNamespace], Remedy::NoUserNamespace),
            (vec![], vec![], Remedy::DebugLog),
        ] {
            let refusals: Vec<_> = refusals.into_iter().cloned().collect();
            assert_eq!(Remedy::of_all(&refusals, &Host(obstacles)), expected, "{refusals:?}");
        }
    }
}
