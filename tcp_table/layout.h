/* How tcp_table writes an event, wherever it comes from. */
#ifndef LAYOUT_H
#define LAYOUT_H

#include <stdbool.h>
#include <stddef.h>

#include "event.h"

/* Text that is collected, and then written at once. Cuts what does not fit. */
struct line {
    char text[4096]; /* an event of 430 bytes, each byte escaped to four, still fits */
    size_t length;
};

/* Returns 0, or the errno of a failed write. Plain write(2): the program may end at any time, and must leave nothing
 * in a buffer. */
int write_line(const struct line *line);

enum column { TIME, KIND, PID, USER, COMMAND, LOCAL, REMOTE, RECEIVED, SENT, SEGMENTS, COLUMNS };

struct layout {
    int width[COLUMNS]; /* 0: not shown */
};

struct table {
    struct layout layout;
    int seen[COLUMNS]; /* the widest text so far */
    int lines_left;    /* until the header is due again */
    bool started;
};

void table_begin(struct table *table);

/* Puts the header if it is due: at the beginning, after each screenful on a terminal, and when columns move. */
void table_header(struct table *table, struct line *line);

/* Puts an event, after the header if that is due. */
void table_row(struct table *table, struct line *line, const struct tcp_event_t *event);

void tsv_header(struct line *line);
void tsv_row(struct line *line, const struct tcp_event_t *event);

#endif
