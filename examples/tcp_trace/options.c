#define _GNU_SOURCE
#include "options.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "alert.h"
#include "tcpevent.h"

#ifndef TCPEVENT_VERSION
#define TCPEVENT_VERSION "(built outside its source tree)"
#endif

static const char help[] =
    "Usage: tcp_trace [OPTION]...\n"
    "Watches the TCP connections of this host: writes a line for each change of a connection's state, and a warning\n"
    "for each connection that could not be established; alerts a Slack channel of those. Needs root, or CAP_BPF and\n"
    "CAP_PERFMON.\n"
    "\n"
    "  --dest ADDRESS       only connections with this remote address or prefix, IPv4 or IPv6: 192.0.2.7, 10.0.0.0/8,\n"
    "                       2001:db8::/32. Several with commas, or by giving the option again ($DEST_IP)\n"
    "  --dport PORT         only those with this remote port or range: 443, 8000-8999. Several as above ($DEST_PORT)\n"
    "  --log-file PATH      append to this file, not standard output; SIGHUP reopens it ($LOG_FILE)\n"
    "  --log-rate LINES     at most so many lines a second on average, 1 to 99999, of which a user may have half; 1000 "
    "if\n"
    "                       it is not given, 0 for no limit. The log counts those left out ($LOG_RATE)\n"
    "  --json               a JSON object for each line\n"
    "  --slack-url URL      the webhook to post failures to. A secret: better give it as $SLACK_URL\n"
    "  --slack-ca-file PATH trust the certificate authorities of this PEM file too ($SLACK_CA_FILE)\n"
    "  --ignore-given-up    no warning or alert where the program gave up before the network answered (browsers do,\n"
    "                       with the slower of IPv4 and IPv6)\n"
    "  --help               this text\n"
    "  --version            the version\n"
    "\n"
    "An option wins over its variable. SIGTERM or SIGINT ends it. Status: 0 ended as asked, 1 it failed, 2 wrong\n"
    "arguments.\n";

enum { LOG_RATE_LINES = 1000 }; /* some 9 GB a day, by columns */

static const unsigned NOT_GIVEN = UINT_MAX;

/* ---- Refusals ----------------------------------------------------------------------------------------------- */

/* `name` is an option or a variable. `value` is NULL or empty if it is missing, or must not be shown. */
static _Noreturn void reject(const char *name, const char *value, const char *problem)
{
    char storage[1024];
    struct text line = TEXT_IN(storage);

    put(&line, "tcp_trace: ");
    put_printable(&line, name, 200, "");
    put(&line, ": ");
    if (value != NULL && value[0] != '\0') {
        put_printable(&line, value, 100, "");
        put(&line, ": ");
    }
    put(&line, problem);
    put(&line, "\n");
    fputs(line.data, stderr);
    exit(2);
}

static _Noreturn void out_of_memory(void)
{
    fputs("tcp_trace: out of memory\n", stderr);
    exit(1);
}

static char *copy_of(const char *string)
{
    char *copy = strdup(string);

    if (copy == NULL)
        out_of_memory();
    return copy;
}

/* ---- Lists -------------------------------------------------------------------------------------------------- */

static const char separators[] = ", \t\r\n";

/* A whole number from `least` to `most`, in plain digits. */
static bool parse_number(const char *digits, size_t length, unsigned long least, unsigned long most,
                         unsigned long *number)
{
    *number = 0;
    if (length == 0 || length > 5)
        return false;
    for (size_t i = 0; i < length; i++) {
        if (digits[i] < '0' || digits[i] > '9')
            return false;
        *number = *number * 10 + (unsigned long)(digits[i] - '0');
    }
    return *number >= least && *number <= most;
}

/* Each word is checked here and rebuilt from what was parsed, so that no word can smuggle in a term of the filter
 * that is not an address or a port. */
static bool put_address_word(struct text *text, const char *word)
{
    char address[INET6_ADDRSTRLEN];
    const char *slash = strchrnul(word, '/');
    size_t length = (size_t)(slash - word);
    unsigned char binary[16];
    unsigned long bits;
    int family;

    if (length >= sizeof address)
        return false;
    memcpy(address, word, length);
    address[length] = '\0';
    family = strchr(address, ':') != NULL ? AF_INET6 : AF_INET;
    if (inet_pton(family, address, binary) != 1)
        return false;
    inet_ntop(family, binary, address, sizeof address);
    put(text, address);
    if (*slash == '\0')
        return true;
    if (!parse_number(slash + 1, strlen(slash + 1), 0, family == AF_INET6 ? 128 : 32, &bits))
        return false;
    put_format(text, "/%lu", bits);
    return true;
}

static bool put_port_word(struct text *text, const char *word)
{
    const char *dash = strchrnul(word, '-');
    unsigned long first;
    unsigned long last;

    if (!parse_number(word, (size_t)(dash - word), 1, 65535, &first))
        return false;
    put_format(text, "%lu", first);
    if (*dash == '\0')
        return true;
    if (!parse_number(dash + 1, strlen(dash + 1), first, 65535, &last))
        return false;
    put_format(text, "-%lu", last);
    return true;
}

static const struct list {
    bool (*put_word)(struct text *text, const char *word);
    const char *problem;
} addresses = {put_address_word,
               "not an IP address or prefix; give one such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32"},
  ports = {put_port_word, "not a port or range of ports; give one such as 443 or 8000-8999, from 1 to 65535"};

/* Adds the words of `value` to `*list`. Returns whether there were any. */
static bool add_words(char **list, const struct list *kind, const char *name, const char *value)
{
    char *words = copy_of(value);
    char *rest = words;
    char *word;
    size_t length = *list == NULL ? 0 : strlen(*list);
    bool any = false;

    while ((word = strsep(&rest, separators)) != NULL) {
        char storage[64]; /* the longest address, and a prefix length */
        struct text checked = TEXT_IN(storage);

        if (*word == '\0')
            continue; /* between two separators */
        if (!kind->put_word(&checked, word))
            reject(name, word, kind->problem);
        *list = realloc(*list, length + checked.length + 2);
        if (*list == NULL)
            out_of_memory();
        length += (size_t)sprintf(*list + length, "%s%s", length > 0 ? "," : "", checked.data);
        any = true;
    }
    free(words);
    return any;
}

/* ---- Reading ------------------------------------------------------------------------------------------------ */

/* The value of a variable; NULL if it is not set, or empty. */
static const char *variable(const char *name)
{
    const char *value = getenv(name);

    return value != NULL && value[0] != '\0' ? value : NULL;
}

enum { DEST = 256, DPORT, LOG_FILE, LOG_RATE, SLACK_URL, SLACK_CA_FILE, JSON, IGNORE_GIVEN_UP, HELP, VERSION };

static const struct option known[] = {
    {"dest", required_argument, NULL, DEST},
    {"dport", required_argument, NULL, DPORT},
    {"log-file", required_argument, NULL, LOG_FILE},
    {"log-rate", required_argument, NULL, LOG_RATE},
    {"slack-url", required_argument, NULL, SLACK_URL},
    {"slack-ca-file", required_argument, NULL, SLACK_CA_FILE},
    {"json", no_argument, NULL, JSON},
    {"ignore-given-up", no_argument, NULL, IGNORE_GIVEN_UP},
    {"help", no_argument, NULL, HELP},
    {"version", no_argument, NULL, VERSION},
    {NULL, 0, NULL, 0},
};

/* How to name this option to the user, or this argument without its value. */
static const char *name_of(int value, const char *argument)
{
    static char storage[64];
    struct text name = TEXT_IN(storage);

    for (size_t i = 0; known[i].name != NULL; i++) {
        if (known[i].val == value) {
            put_format(&name, "--%s", known[i].name);
            return name.data;
        }
    }
    /* A URL without its option is still a secret. */
    if (strstr(argument, "://") != NULL && argument[0] != '-')
        put(&name, "an argument");
    else
        put_bytes(&name, argument, strcspn(argument, "="));
    return name.data;
}

static unsigned read_log_rate(const char *name, const char *value)
{
    unsigned long rate;

    if (!parse_number(value, strlen(value), 0, 99999, &rate))
        reject(name, value, "not a number of lines a second; give one from 1 to 99999, or 0 for no limit");
    return (unsigned)rate;
}

static void check_url(const char *name, const char *url)
{
    if (!alerts_url_is_valid(url))
        reject(name, NULL,
               "not an http or https URL (not shown, as it is a secret); give the webhook URL as Slack shows it");
}

static void read_arguments(struct options *options, int argc, char **argv)
{
    int option;

    opterr = 0; /* its messages give no remedy */
    while ((option = getopt_long(argc, argv, ":h", known, NULL)) != -1) {
        bool empty = option >= DEST && optarg != NULL && optarg[0] == '\0';

        switch (option) {
        case DEST:
            empty = !add_words(&options->destinations, &addresses, "--dest", optarg);
            break;
        case DPORT:
            empty = !add_words(&options->ports, &ports, "--dport", optarg);
            break;
        case LOG_FILE:
            options->log_file = optarg;
            break;
        case LOG_RATE:
            if (!empty)
                options->log_rate = read_log_rate("--log-rate", optarg);
            break;
        case SLACK_URL:
            free(options->slack_url);
            options->slack_url = copy_of(optarg);
            /* Any user can read a command line with ps. */
            memset(optarg, 'x', strlen(optarg));
            if (!empty)
                check_url("--slack-url", options->slack_url);
            break;
        case SLACK_CA_FILE:
            options->slack_ca_file = optarg;
            break;
        case JSON:
            options->json = true;
            break;
        case IGNORE_GIVEN_UP:
            options->ignore_given_up = true;
            break;
        case HELP:
        case 'h':
            fputs(help, stdout);
            exit(0);
        case VERSION:
            printf("tcp_trace " TCPEVENT_VERSION " (library %s)\n", tcpevent_version());
            exit(0);
        case ':':
            reject(name_of(optopt, argv[optind - 1]), NULL, "a value must follow; see tcp_trace --help");
        default: {
            char letter[] = {'-', (char)optopt, '\0'};

            if (optopt >= DEST)
                reject(name_of(optopt, ""), NULL, "takes no value; see tcp_trace --help");
            reject(name_of(0, optopt > 0 ? letter : argv[optind - 1]), NULL, "no such option; see tcp_trace --help");
        }
        }
        if (empty)
            reject(name_of(option, ""), NULL, "its value is empty; give one, or leave the option out");
    }
    if (optind < argc)
        reject(name_of(0, argv[optind]), NULL, "takes options only; see tcp_trace --help");
}

struct options options_read(int argc, char **argv)
{
    struct options options = {.log_rate = NOT_GIVEN};
    const char *value;

    read_arguments(&options, argc, argv);
    value = options.destinations == NULL ? variable("DEST_IP") : NULL;
    if (value != NULL)
        add_words(&options.destinations, &addresses, "DEST_IP", value);
    value = options.ports == NULL ? variable("DEST_PORT") : NULL;
    if (value != NULL)
        add_words(&options.ports, &ports, "DEST_PORT", value);
    value = options.slack_url == NULL ? variable("SLACK_URL") : NULL;
    if (value != NULL) {
        check_url("SLACK_URL", value);
        options.slack_url = copy_of(value);
    }
    if (options.slack_ca_file == NULL)
        options.slack_ca_file = variable("SLACK_CA_FILE");
    if (options.log_file == NULL)
        options.log_file = variable("LOG_FILE");
    if (options.log_rate == NOT_GIVEN) {
        value = variable("LOG_RATE");
        options.log_rate = value != NULL ? read_log_rate("LOG_RATE", value) : LOG_RATE_LINES;
    }
    return options;
}

char *options_filter(const struct options *options)
{
    const char *dst = options->destinations != NULL ? " dst " : "";
    const char *dport = options->ports != NULL ? " dport " : "";
    char *filter = NULL;

    if (options->destinations == NULL && options->ports == NULL)
        return NULL;
    if (asprintf(&filter, "%s%s%s%s", dst, options->destinations != NULL ? options->destinations : "", dport,
                 options->ports != NULL ? options->ports : "") < 0)
        out_of_memory();
    return filter;
}

void options_free(struct options *options)
{
    free(options->destinations);
    free(options->ports);
    free(options->slack_url);
}
