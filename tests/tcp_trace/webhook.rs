//! A webhook with scripted answers: `webhook.py`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::consumer::root;
use crate::monitor::patience;

/// The path of the URL: a secret, even in part.
const PATH: &str = "/hook-services/T0HOOK/t0ken-of-hook";
pub const SECRETS: [&str; 3] = ["hook-services", "T0HOOK", "t0ken-of-hook"];

pub fn url(scheme: &str, server: SocketAddr) -> String {
    format!("{scheme}://{server}{PATH}")
}

/// A request to the webhook.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its answer: a word of the plan.
    pub word: String,
    /// Time of arrival, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Earliest time of the next request by that answer; 0 for none.
    pub not_before_ns: u64,
    pub text: String,
}

pub struct Webhook {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<Vec<String>>,
    port: u16,
    scheme: &'static str,
}

impl Webhook {
    pub fn start(plan: &str) -> Self {
        Self::start_at(0, plan)
    }

    pub fn start_at(port: u16, plan: &str) -> Self {
        Self::run(port, None, plan)
    }

    pub fn with_certificate(certificate: &Certificate, plan: &str) -> Self {
        Self::run(0, Some(certificate), plan)
    }

    fn run(port: u16, certificate: Option<&Certificate>, plan: &str) -> Self {
        let mut command = Command::new("python3");
        command.arg(root().join("tests/tcp_trace/webhook.py")).arg(port.to_string());
        command.args(certificate.iter().flat_map(|files| [&files.certificate, &files.key]));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line.split('\t').map(unescape).collect()).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take().unwrap();
        let scheme = if certificate.is_some() { "https" } else { "http" };
        let mut webhook = Self { child, stdin, lines, port, scheme };
        webhook.port = webhook.expect("listening")[0].parse().unwrap();
        webhook.plan(plan);
        webhook
    }

    pub fn url(&self) -> String {
        url(self.scheme, (Ipv4Addr::LOCALHOST, self.port).into())
    }

    /// The answers to the requests from now on. No request may come meanwhile.
    pub fn plan(&mut self, words: &str) {
        writeln!(self.stdin, "plan {words}").unwrap();
        self.expect("planned");
    }

    fn line_within(&mut self, time: Duration) -> Option<Vec<String>> {
        match self.lines.recv_timeout(time) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the webhook has ended"),
        }
    }

    /// The next line, which must be of this kind: its other fields.
    pub fn expect(&mut self, kind: &str) -> Vec<String> {
        let mut line = self.line_within(patience()).unwrap_or_else(|| panic!("no {kind} comes"));
        assert_eq!(line[0], kind, "{line:?}");
        line.split_off(1)
    }

    fn read(fields: &[String]) -> Request {
        let [word, time, not_before, method, path, kind, text] = fields else { panic!("{fields:?}") };
        assert_eq!((method.as_str(), path.as_str()), ("POST", PATH));
        let kind = kind.to_ascii_lowercase();
        assert!(["application/json", "application/json; charset=utf-8"].contains(&&*kind), "{kind}");
        Request {
            word: word.clone(),
            time_ns: time.parse().unwrap(),
            not_before_ns: not_before.parse().unwrap(),
            text: text.clone(),
        }
    }

    /// The next request; nothing else may come before.
    pub fn request(&mut self) -> Request {
        Self::read(&self.expect("request"))
    }

    /// The same, if it comes in time.
    pub fn request_within(&mut self, time: Duration) -> Option<Request> {
        let line = self.line_within(time)?;
        assert_eq!(line[0], "request", "{line:?}");
        Some(Self::read(&line[1..]))
    }

    /// The requests up to one with this answer.
    pub fn requests_until(&mut self, word: &str) -> Vec<Request> {
        let mut requests = vec![self.request()];
        while requests.last().unwrap().word != word {
            requests.push(self.request());
        }
        requests
    }

    /// All requests so far, once no monitor is left to send any.
    pub fn rest(&mut self) -> Vec<Request> {
        // The answer to a command follows everything before it.
        writeln!(self.stdin, "plan 200").unwrap();
        let until = Instant::now() + patience();
        let mut requests = Vec::new();
        loop {
            let line = self.line_within(until.saturating_duration_since(Instant::now())).expect("it answers");
            match line[0].as_str() {
                "request" => requests.push(Self::read(&line[1..])),
                "planned" => return requests,
                "gone" => {}
                _ => panic!("{line:?}"),
            }
        }
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unescape(field: &str) -> String {
    let mut text = String::new();
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                other => other.expect("no half escape"),
            },
            other => other,
        });
    }
    text
}

/// A self-signed certificate, and its key.
pub struct Certificate {
    pub certificate: PathBuf,
    key: PathBuf,
}

impl Certificate {
    /// For a server at this address.
    pub fn new(folder: &Path, name: &str, address: &str) -> Self {
        let [certificate, key] = ["crt", "key"].map(|kind| folder.join(format!("{name}.{kind}")));
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=tcp_trace test", "-addext", &format!("subjectAltName=IP:{address}")])
            .args(["-keyout".as_ref(), key.as_os_str(), "-out".as_ref(), certificate.as_os_str()])
            .output()
            .expect("openssl runs");
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Self { certificate, key }
    }
}

// ---- Messages

/// The failures that a message reports.
#[derive(Debug, Default)]
pub struct Message {
    /// Failures by `ADDRESS:PORT`.
    pub counts: BTreeMap<String, u64>,
    /// Failures at destinations that are not named.
    pub others: u64,
    /// Lines of destinations.
    pub lines: usize,
    /// Lost events.
    pub lost: u64,
}

impl Message {
    /// Parses a message, all of which must be right, the sum in its first line too.
    pub fn read(text: &str) -> Self {
        Self::try_read(text).unwrap_or_else(|| panic!("not a message of failures: {text:?}"))
    }

    fn try_read(text: &str) -> Option<Self> {
        let host = host_name();
        let (text, missing) = match text.strip_suffix(" events were lost; there may be more failures among them") {
            Some(text) => text.rsplit_once('\n')?,
            None => (text, "0"),
        };
        let missing = missing.parse().ok()?;
        if let Some(one) = text.strip_prefix("TCP failure detected: ") {
            let (address, rest) = one.split_once(" (")?;
            let (reason, rest) = rest.split_once("; pid ")?;
            let (pid, rest) = rest.split_once(", command ")?;
            pid.parse::<u32>().ok()?;
            let named = !reason.is_empty() && rest.ends_with(&format!(") on {host}"));
            return named.then(|| Self {
                counts: [(address.to_owned(), 1)].into(),
                others: 0,
                lines: 1,
                lost: missing,
            });
        }
        let mut message = Self { lost: missing, ..Self::default() };
        let (first, rest) = text.split_once('\n')?;
        let total = first.strip_suffix(&format!(" TCP failures on {host}:"))?.parse::<u64>().ok()?;
        for line in rest.lines() {
            if let Some(count) =
                line.strip_prefix("and ").and_then(|line| line.strip_suffix(" failures of other destinations"))
            {
                message.others += count.parse::<u64>().ok()?;
                continue;
            }
            let (count, line) = line.split_once(" x ")?;
            let (address, line) = line.split_once(" (")?;
            let (reason, line) = line.split_once("; last pid ")?;
            let (pid, line) = line.split_once(", command ")?;
            let (_, line) = line.split_once("; first ")?;
            let (first, last) = line.strip_suffix(')')?.split_once(" last ")?;
            pid.parse::<u32>().ok()?;
            let is_time = |text: &str| {
                text.len() == 8 && text.split(':').all(|part| part.len() == 2 && part.parse::<u8>().is_ok())
            };
            if reason.is_empty() || !is_time(first) || !is_time(last) || first > last && last > "00:01:00" {
                return None;
            }
            *message.counts.entry(address.to_owned()).or_default() += count.parse::<u64>().ok()?;
            message.lines += 1;
        }
        (message.total() == total).then_some(message)
    }

    pub fn total(&self) -> u64 {
        self.counts.values().sum::<u64>() + self.others
    }
}

pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim_end().to_owned()
}
