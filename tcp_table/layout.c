/* How tcp_table writes an event: as a row of the table, as wide as the terminal is, or as tab-separated values. */
#define _GNU_SOURCE
#include "layout.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

enum { DEFAULT_COLUMNS = 80 };

/* ---- One line of output ------------------------------------------------------------------------------------- */

static void put_bytes(struct line *line, const char *bytes, size_t count)
{
    if (count > sizeof line->text - line->length)
        count = sizeof line->text - line->length;
    memcpy(line->text + line->length, bytes, count);
    line->length += count;
}

static void put(struct line *line, const char *text)
{
    put_bytes(line, text, strlen(text));
}

static void put_spaces(struct line *line, int count)
{
    while (count-- > 0)
        put(line, " ");
}

int write_line(const struct line *line)
{
    size_t written = 0;

    while (written < line->length) {
        ssize_t now = write(STDOUT_FILENO, line->text + written, line->length - written);
        if (now >= 0)
            written += (size_t)now;
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

/* ---- What the columns hold ---------------------------------------------------------------------------------- */

/* Exact below 10,000; above that as many digits as `width` columns hold (4 or more), and a decimal unit. */
static const char *quantity(char *out, size_t size, uint64_t number, int width)
{
    static const char units[] = "KMGTPE";
    double scaled = (double)number;
    int unit = -1;
    int decimals = width - 3;

    if (number < 10000) {
        snprintf(out, size, "%" PRIu64, number);
        return out;
    }
    do {
        scaled /= 1000;
        unit++;
    } while (scaled >= 999.5);
    while (snprintf(out, size, "%.*f%c", decimals, scaled, units[unit]) > width && decimals > 0)
        decimals--;
    return out;
}

/* Line separators, marks that change the text direction, and invisible characters, which make one name look like
 * another (Unicode: Default_Ignorable_Code_Point). Locales differ about those. */
static bool is_mark(uint32_t code)
{
    static const uint32_t ranges[][2] = {
        {0x80, 0x9f},       {0xad, 0xad},       {0x34f, 0x34f},     {0x61c, 0x61c},   {0x115f, 0x1160},
        {0x17b4, 0x17b5},   {0x180b, 0x180f},   {0x200b, 0x200f},   {0x2028, 0x202e}, {0x2060, 0x206f},
        {0x3164, 0x3164},   {0xfe00, 0xfe0f},   {0xfeff, 0xfeff},   {0xffa0, 0xffa0}, {0xfff0, 0xfffb},
        {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0xe0000, 0xe0fff},
    };

    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (code >= ranges[i][0] && code <= ranges[i][1])
            return true;
    return false;
}

/* A process chooses its own name: whatever a terminal, or the reader of a line, would obey must not reach it. Puts
 * the character at `text`, as it is if it is printable, otherwise as \n, \t, \r or \xNN for each byte. Returns its
 * bytes, and sets `columns` to its width on a terminal. */
static size_t put_character(struct line *line, const char *text, size_t size, int *columns)
{
    mbstate_t state = {0};
    wchar_t character = 0;
    size_t bytes = mbrtowc(&character, text, size, &state);
    size_t start = line->length;
    bool readable = bytes <= MB_LEN_MAX && bytes > 0;

    if (!readable)
        bytes = 1; /* not a character of this locale */
    *columns = readable ? wcwidth(character) : -1;
    if (*columns >= 0 && character != L'\\' && !is_mark((uint32_t)character)) {
        put_bytes(line, text, bytes);
        return bytes;
    }
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)text[i];
        char escape[8];

        if (byte == '\\' || byte == '\n' || byte == '\t' || byte == '\r')
            snprintf(escape, sizeof escape, "\\%c",
                     byte == '\n'   ? 'n'
                     : byte == '\t' ? 't'
                     : byte == '\r' ? 'r'
                                    : '\\');
        else
            snprintf(escape, sizeof escape, "\\x%02x", byte);
        put(line, escape);
    }
    *columns = (int)(line->length - start);
    return bytes;
}

/* Writes at most `room` columns of printable text, marks a cut with a `+`, and returns the columns used. */
static int put_printable(struct line *line, const char *text, int room)
{
    struct line whole = {.length = 0};
    size_t fitting = 0; /* bytes of `whole` that leave a column for the mark */
    int fitting_columns = 0;
    int columns = 0;

    while (*text != '\0') {
        int width;

        text += put_character(&whole, text, strlen(text), &width);
        columns += width;
        if (columns <= room - 1) {
            fitting = whole.length;
            fitting_columns = columns;
        }
    }
    if (columns <= room) {
        put_bytes(line, whole.text, whole.length);
        return columns;
    }
    put_bytes(line, whole.text, fitting);
    put(line, "+");
    return fitting_columns + 1;
}

/* Names of users, looked up once each: a look-up may ask a directory server. */
static const char *user_name(uint32_t uid)
{
    static struct {
        bool known;
        uint32_t uid;
        char name[40];
    } users[64];
    size_t slot = uid % (sizeof users / sizeof users[0]);

    if (uid == UINT32_MAX)
        return "-"; /* not known */
    if (!users[slot].known || users[slot].uid != uid) {
        char strings[16384];
        struct passwd entry;
        struct passwd *found = NULL;

        users[slot].known = true;
        users[slot].uid = uid;
        if (getpwuid_r(uid, &entry, strings, sizeof strings, &found) == 0 && found != NULL)
            snprintf(users[slot].name, sizeof users[slot].name, "%s", found->pw_name);
        else
            snprintf(users[slot].name, sizeof users[slot].name, "%" PRIu32, uid);
    }
    return users[slot].name;
}

/* `address:port`, or `[address]:port` for IPv6. If it does not fit, `..` replaces the middle of the address; the
 * port always stays. */
static void endpoint(char *out, size_t size, const char *address, unsigned port, int room)
{
    bool colons = strchr(address, ':') != NULL;
    const char *open = colons ? "[" : "";
    const char *close = colons ? "]" : "";
    char tail[16];
    int length = (int)strlen(address);
    int left;

    snprintf(tail, sizeof tail, "%s:%u", close, port);
    left = room - (int)strlen(open) - (int)strlen(tail);
    if (length > left && length > 4) {
        int kept = left > 4 ? left - 2 : 2;
        int front = (kept + 1) / 2;

        snprintf(out, size, "%s%.*s..%s%s", open, front, address, address + length - (kept - front), tail);
    } else {
        snprintf(out, size, "%s%s%s", open, address, tail);
    }
}

/* ---- The table ---------------------------------------------------------------------------------------------- */

static const struct {
    const char *title;
    int width; /* its minimal width */
    bool number;
} columns[COLUMNS] = {
    [TIME] = {"TIME", 12, false},     [KIND] = {"KIND", 6, false},   [PID] = {"PID", 5, true},
    [USER] = {"USER", 4, false},      [COMMAND] = {"CMD", 6, false}, [LOCAL] = {"LOCAL", 12, false},
    [REMOTE] = {"REMOTE", 12, false}, [RECEIVED] = {"RX", 5, true},  [SENT] = {"TX", 5, true},
    [SEGMENTS] = {"SEGS", 5, true},
};

static int total_width(const struct layout *layout)
{
    int sum = -1; /* a space between two columns, none after the last */

    for (int column = 0; column < COLUMNS; column++)
        if (layout->width[column] > 0)
            sum += layout->width[column] + 1;
    return sum;
}

/* Spreads `room` columns of terminal. `seen` is the widest text each column had so far: pids and segments are never
 * cut, and a wide terminal gives the others what they want and no more. */
static struct layout lay_out(int room, const int seen[COLUMNS])
{
    /* In order of need. An IPv4 endpoint has 15 characters on loopback and 21 at most, a mapped one 30, any 47. */
    static const struct {
        enum column first, second;
        int target;
    } wishes[] = {
        {LOCAL, REMOTE, 15},    {COMMAND, COMMAND, 8}, {USER, USER, 8},     {LOCAL, REMOTE, 21},
        {COMMAND, COMMAND, 16}, {LOCAL, REMOTE, 30},   {LOCAL, REMOTE, 47}, {USER, USER, 32},
    };
    static const enum column least_missed[] = {SEGMENTS, USER, COMMAND, TIME};
    struct layout layout;

    for (int column = 0; column < COLUMNS; column++)
        layout.width[column] = columns[column].width;
    layout.width[PID] = seen[PID];
    layout.width[SEGMENTS] = seen[SEGMENTS];

    /* The remote column can say `listen` as well, so the kind has a column of its own only if no address is cut for
     * it. */
    if (total_width(&layout) + 2 * (21 - columns[LOCAL].width) > room)
        layout.width[KIND] = 0;
    for (size_t i = 0; i < sizeof least_missed / sizeof least_missed[0] && total_width(&layout) > room; i++)
        layout.width[least_missed[i]] = 0;

    for (size_t i = 0; i < sizeof wishes / sizeof wishes[0]; i++) {
        int *first = &layout.width[wishes[i].first];
        int *second = &layout.width[wishes[i].second];
        int sharers = first == second ? 1 : 2;
        int spare = room - total_width(&layout);
        int widest = seen[wishes[i].first] > seen[wishes[i].second] ? seen[wishes[i].first] : seen[wishes[i].second];
        int growth = (widest < wishes[i].target ? widest : wishes[i].target) - *first;

        if (*first == 0 || spare <= 0)
            continue;
        if (growth > spare / sharers)
            growth = spare / sharers;
        if (growth <= 0)
            continue;
        *first += growth;
        if (sharers == 2)
            *second += growth;
    }
    return layout;
}

/* `used` columns of a cell are written: pads the rest with blanks, except at the end of the line. */
static void put_cell(struct line *line, const struct layout *layout, enum column column, const char *text)
{
    int width = layout->width[column];
    int used;
    bool last = true;

    if (width == 0)
        return;
    if (line->length > 0)
        put(line, " ");
    for (int next = (int)column + 1; next < COLUMNS; next++)
        last = last && layout->width[next] == 0;
    if (columns[column].number) {
        put_spaces(line, width - (int)strlen(text));
        put(line, text);
        return;
    }
    /* Only names are cut to fit: an endpoint was shortened already, and must keep its port. */
    used = put_printable(line, text, column == USER || column == COMMAND ? width : INT_MAX);
    if (!last)
        put_spaces(line, width - used);
}

/* Wide enough for most hosts, so that columns need not move later. */
void table_begin(struct table *table)
{
    *table =
        (struct table){.seen = {[PID] = 5, [USER] = 8, [COMMAND] = 8, [LOCAL] = 21, [REMOTE] = 21, [SEGMENTS] = 5}};
}

static void put_header(struct line *line, const struct layout *layout)
{
    struct line header = {.length = 0};

    for (int column = 0; column < COLUMNS; column++)
        put_cell(&header, layout, (enum column)column, columns[column].title);
    put(&header, "\n");
    put_bytes(line, header.text, header.length);
}

void table_header(struct table *table, struct line *line)
{
    struct winsize size = {.ws_col = 0};
    bool terminal = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0;
    int room = terminal && size.ws_col > 0 ? size.ws_col : DEFAULT_COLUMNS;
    struct layout layout = lay_out(room, table->seen);
    bool moved = memcmp(&layout, &table->layout, sizeof layout) != 0;

    table->layout = layout;
    if (!table->started || (terminal && (moved || table->lines_left <= 0))) {
        put_header(line, &layout);
        table->started = true;
        /* A screen holds the header and this many lines. A window of unknown size gets only the first header. */
        table->lines_left = size.ws_row > 1 ? size.ws_row - 1 : INT_MAX;
    }
    table->lines_left--;
}

static void see(struct table *table, enum column column, const char *text)
{
    int length = (int)strlen(text);

    if (length > table->seen[column])
        table->seen[column] = length;
}

void table_row(struct table *table, struct line *line, const struct tcp_event_t *event)
{
    struct line row = {.length = 0};
    char local_address[sizeof event->SADDR + 1];
    char remote_address[sizeof event->DADDR + 1];
    char command[sizeof event->task + 1];
    char time_of_day[32];
    char milliseconds[8];
    char pid[16];
    char local[sizeof local_address + 32];
    char remote[sizeof local_address + 32];
    char received[16];
    char sent[16];
    char in[16];
    char out[16];
    char segments[2 * sizeof in];
    time_t seconds = (time_t)(event->EventTime / 1000000000u);
    unsigned milli = (unsigned)(event->EventTime / 1000000u % 1000u);
    struct tm local_time;
    /* An event gives neither its kind nor a state. A listening socket has no remote port, but neither has a
     * connect() to port 0: that one has a remote address (a connect to 0.0.0.0 goes to this host: ip_route_connect).
     * A connection's snapshot and its close cannot be told apart reliably. */
    bool listening = event->DPT == 0 && (strcmp(event->DADDR, "0.0.0.0") == 0 || strcmp(event->DADDR, "::") == 0);

    localtime_r(&seconds, &local_time);
    strftime(time_of_day, sizeof time_of_day, "%H:%M:%S", &local_time);
    snprintf(milliseconds, sizeof milliseconds, ".%03u", milli);
    strcat(time_of_day, milliseconds);
    snprintf(pid, sizeof pid, "%" PRIu32, event->pid);
    snprintf(command, sizeof command, "%.*s", (int)sizeof event->task, event->task);
    quantity(received, sizeof received, event->rx_b, 5);
    quantity(sent, sizeof sent, event->tx_b, 5);
    quantity(in, sizeof in, event->tcpi_segs_in, 4);
    quantity(out, sizeof out, event->tcpi_segs_out, 4);
    snprintf(segments, sizeof segments, "%s/%s", in, out);

    snprintf(local_address, sizeof local_address, "%.*s", (int)sizeof event->SADDR, event->SADDR);
    snprintf(remote_address, sizeof remote_address, "%.*s", (int)sizeof event->DADDR, event->DADDR);

    see(table, PID, pid);
    see(table, USER, user_name(event->UserId));
    see(table, COMMAND, command);
    see(table, SEGMENTS, segments);
    endpoint(local, sizeof local, local_address, event->SPT, INT_MAX);
    see(table, LOCAL, local);
    endpoint(remote, sizeof remote, remote_address, event->DPT, INT_MAX);
    see(table, REMOTE, remote);
    table_header(table, line);

    endpoint(local, sizeof local, local_address, event->SPT, table->layout.width[LOCAL]);
    endpoint(remote, sizeof remote, remote_address, event->DPT, table->layout.width[REMOTE]);
    if (listening && table->layout.width[KIND] == 0)
        snprintf(remote, sizeof remote, "listen");

    put_cell(&row, &table->layout, TIME, time_of_day);
    put_cell(&row, &table->layout, KIND, listening ? "listen" : "-");
    put_cell(&row, &table->layout, PID, pid);
    put_cell(&row, &table->layout, USER, user_name(event->UserId));
    put_cell(&row, &table->layout, COMMAND, command);
    put_cell(&row, &table->layout, LOCAL, local);
    put_cell(&row, &table->layout, REMOTE, remote);
    put_cell(&row, &table->layout, RECEIVED, received);
    put_cell(&row, &table->layout, SENT, sent);
    put_cell(&row, &table->layout, SEGMENTS, segments);
    put(&row, "\n");
    put_bytes(line, row.text, row.length);
}

/* ---- Tab-separated values ----------------------------------------------------------------------------------- */

void tsv_header(struct line *line)
{
    put(line,
        "#EventTime\tpid\tUserId\trx_b\ttx_b\ttcpi_segs_out\ttcpi_segs_in\tfamily\tSPT\tDPT\ttask\tSADDR\tDADDR\n");
}

/* Escapes unreadable characters and backslashes, so that a line is an event and a tab ends a field. */
static void put_tsv_text(struct line *line, const char *text, size_t size)
{
    size_t length = strnlen(text, size);
    int columns;

    for (size_t at = 0; at < length;)
        at += put_character(line, text + at, length - at, &columns);
}

void tsv_row(struct line *line, const struct tcp_event_t *event)
{
    char numbers[256];

    snprintf(numbers, sizeof numbers,
             "%" PRIu64 "\t%" PRIu32 "\t%" PRIu32 "\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu32 "\t%" PRIu32 "\t%u\t%u\t%u\t",
             event->EventTime, event->pid, event->UserId, event->rx_b, event->tx_b, event->tcpi_segs_out,
             event->tcpi_segs_in, event->family, event->SPT, event->DPT);
    put(line, numbers);
    put_tsv_text(line, event->task, sizeof event->task);
    put(line, "\t");
    put_tsv_text(line, event->SADDR, sizeof event->SADDR);
    put(line, "\t");
    put_tsv_text(line, event->DADDR, sizeof event->DADDR);
    put(line, "\n");
}
