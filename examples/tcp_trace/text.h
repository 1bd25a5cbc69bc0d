/* Text of a bounded size, built up piece by piece: the lines of the log, and the messages to Slack. */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>
#include <stdint.h>

/* Always NUL-terminated. Cuts what does not fit: the storage is to be large enough. */
struct text {
    char *data;
    size_t size; /* of the storage, with the NUL */
    size_t length;
};

/* An empty text in this storage, an array. */
#define TEXT_IN(storage) ((struct text){.data = (storage), .size = sizeof(storage), .length = 0})

void put(struct text *text, const char *string);
void put_bytes(struct text *text, const char *bytes, size_t count);
void put_format(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Up to `size` bytes, or to the NUL, as UTF-8 that stays on its line, whatever they are: control characters, line
 * separators, direction marks, invisible characters and invalid UTF-8 become \n, \t, \r or \xNN for each byte.
 * Characters of `also` get a backslash before them. */
void put_printable(struct text *text, const char *bytes, size_t size, const char *also);

/* Up to `size` bytes, or to the NUL, as a JSON string, with its quotes. An invalid UTF-8 byte becomes the characters
 * \xNN: JSON cannot express it. */
void put_json(struct text *text, const char *bytes, size_t size);

/* A wall-clock time in nanoseconds, in UTC: 2026-11-22T02:30:00.123456Z, and 02:30:00. */
void put_time(struct text *text, uint64_t time_ns);
void put_time_of_day(struct text *text, uint64_t time_ns);

/* The two clocks, now. */
uint64_t wall_clock_ns(void);
int64_t monotonic_ms(void);

#endif
