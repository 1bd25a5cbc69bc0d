/* Text of a bounded size, built up piece by piece: the lines of the log, and the messages to Slack. */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>
#include <stdint.h>

/* Always NUL-terminated. What does not fit is left out: whoever gives the storage sees to it that all fits. */
struct text {
    char *data;
    size_t size; /* of the storage, with the NUL */
    size_t length;
};

/* An empty text in that storage, an array. */
#define TEXT_IN(storage) ((struct text){.data = (storage), .size = sizeof(storage), .length = 0})

void put(struct text *text, const char *string);
void put_bytes(struct text *text, const char *bytes, size_t count);
void put_format(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Up to `size` bytes, or to the NUL, in a form that is UTF-8 and stays on its line, whatever they are: control
 * characters, line separators, marks of direction, characters that are not seen, and what is not UTF-8, as \n, \t, \r or
 * \xNN for each byte. Characters of `also`, with a backslash before them. */
void put_printable(struct text *text, const char *bytes, size_t size, const char *also);

/* Up to `size` bytes, or to the NUL, as a JSON string, with its quotes. A byte that is not UTF-8 becomes the characters
 * \xNN: JSON has no way to say it. */
void put_json(struct text *text, const char *bytes, size_t size);

/* A wall-clock time in nanoseconds, in UTC: 2026-11-22T02:30:00.123456Z, and 02:30:00. */
void put_time(struct text *text, uint64_t time_ns);
void put_time_of_day(struct text *text, uint64_t time_ns);

/* The two clocks, now. */
uint64_t wall_clock_ns(void);
int64_t monotonic_ms(void);

#endif
