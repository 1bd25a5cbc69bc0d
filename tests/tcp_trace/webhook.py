#!/usr/bin/env python3
"""A webhook on loopback with scripted answers, which reports its requests.

    webhook.py PORT [CERTIFICATE KEY]

Commands on stdin, one a line: `plan WORD...` sets the answers to the following requests, one by one; the last word
repeats. Each command is acknowledged by `planned`. The words:

    NNN          this status
    429:SECONDS  with Retry-After in seconds
    429@SECONDS  with Retry-After as an HTTP-date, that many seconds ahead or up to one more
    302          to /moved
    drop         the connection is closed without an answer
    hang         no answer, until the client has gone
    drip         200, and a body that never ends
    pour         200, and 1 GB; then `poured BYTES`, those that the client took

On stdout, fields separated by tabs: `listening PORT`, then for each request
`request WORD TIME NOT-BEFORE METHOD PATH CONTENT-TYPE TEXT`: times in ns since 1970, NOT-BEFORE the time of Retry-After
(0: none), TEXT the field of that name in the JSON body; `wrong WHAT` if the body is not
`{"text": ..., "mrkdwn": false, "unfurl_links": false}`; `gone`
when a client that was left hanging has gone. The end of stdin ends it.
"""

import email.utils
import http.server
import json
import socket
import ssl
import sys
import threading
import time

lock = threading.Lock()
plan = ["200"]


def say(*fields):
    line = "\t".join(str(field).replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") for field in fields)
    with lock:
        print(line, flush=True)


def next_word():
    with lock:
        return plan.pop(0) if len(plan) > 1 else plan[0]


def text_of(body):
    """The text of an alert. Strict: whatever Slack's parser may refuse is wrong here too."""

    def once(pairs):
        names = [name for name, _ in pairs]
        if names != ["text", "mrkdwn", "unfurl_links"]:
            raise ValueError(f"fields {names}")
        return dict(pairs)

    message = json.loads(body.decode("utf-8"), object_pairs_hook=once)
    text = message["text"]
    # A name must not be markup, and a link in it must not be fetched.
    if message["mrkdwn"] is not False or message["unfurl_links"] is not False:
        raise ValueError("markup or links are not turned off")
    if not isinstance(text, str):
        raise ValueError(f"text is {text!r}")
    text.encode("utf-8")  # no lone surrogates
    return text


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        # Here, not where connections are accepted: a client that never finishes its handshake must not block others.
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().setup()

    def answer_any(self):
        arrival = time.time_ns()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        word = next_word()
        not_before = 0
        headers = {}
        if word.startswith("429:"):
            not_before = arrival + int(word[4:]) * 1_000_000_000
            headers["Retry-After"] = word[4:]
        elif word.startswith("429@"):
            moment = int(time.time()) + int(word[4:]) + 1
            not_before = moment * 1_000_000_000
            headers["Retry-After"] = email.utils.formatdate(moment, usegmt=True)
        elif word == "302":
            headers["Location"] = "/moved"
        try:
            text = text_of(body)
        except (ValueError, KeyError, TypeError) as error:
            say("wrong", f"{error}: {body!r}")
            text = ""
        say("request", word, arrival, not_before, self.command, self.path, self.headers.get("Content-Type"), text)
        if word == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif word in ("hang", "drip"):
            if word == "drip":
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                threading.Thread(target=self.drip, daemon=True).start()
            try:
                while self.connection.recv(4096):
                    pass
            except OSError:
                pass
            say("gone")
            self.close_connection = True
        elif word == "pour":
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 30))
            self.end_headers()
            poured = 0
            try:
                while poured < 1 << 30:
                    poured += self.connection.send(b"x" * 65536)
            except OSError:
                pass
            say("poured", poured)
            self.close_connection = True
        else:
            answer = b"an answer that nobody is to see"
            self.send_response(int(word[:3]))
            for name, value in headers.items():
                self.send_header(name, value)
            if word == "204":
                answer = b""
            else:
                self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def drip(self):
        try:
            while self.connection.send(b"x"):
                time.sleep(0.1)
        except OSError:
            pass

    do_GET = do_PUT = do_HEAD = do_POST = answer_any

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # a client that went away, or one whose handshake has failed


def main():
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2], sys.argv[3])
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say("listening", server.server_address[1])
    for line in sys.stdin:
        name, *words = line.split()
        assert name == "plan" and words, line
        with lock:
            plan[:] = words
        say("planned")


main()
