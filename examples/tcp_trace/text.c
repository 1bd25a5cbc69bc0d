#define _GNU_SOURCE
#include "text.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

void put_bytes(struct text *text, const char *bytes, size_t count)
{
    size_t room = text->size - text->length - 1;

    if (count > room)
        count = room;
    memcpy(text->data + text->length, bytes, count);
    text->length += count;
    text->data[text->length] = '\0';
}

void put(struct text *text, const char *string)
{
    put_bytes(text, string, strlen(string));
}

void put_format(struct text *text, const char *format, ...)
{
    size_t room = text->size - text->length;
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(text->data + text->length, room, format, arguments);
    va_end(arguments);
    if (length > 0)
        text->length += (size_t)length < room ? (size_t)length : room - 1;
}

/* ---- Escapes ------------------------------------------------------------------------------------------------ */

/* Bytes of the UTF-8 character at the start of these `size` bytes; 0 if there is none (RFC 3629: no surrogates, and
 * no overlong forms). */
static size_t utf8_character(const unsigned char *bytes, size_t size)
{
    unsigned char first = bytes[0];
    unsigned char least = 0x80; /* of the second byte */
    unsigned char most = 0xbf;
    size_t length;

    if (first < 0x80)
        return 1;
    if (first >= 0xc2 && first <= 0xdf)
        length = 2;
    else if (first >= 0xe0 && first <= 0xef)
        length = 3;
    else if (first >= 0xf0 && first <= 0xf4)
        length = 4;
    else
        return 0;
    if (first == 0xe0)
        least = 0xa0;
    else if (first == 0xed)
        most = 0x9f;
    else if (first == 0xf0)
        least = 0x90;
    else if (first == 0xf4)
        most = 0x8f;
    if (size < length || bytes[1] < least || bytes[1] > most)
        return 0;
    for (size_t i = 2; i < length; i++)
        if (bytes[i] < 0x80 || bytes[i] > 0xbf)
            return 0;
    return length;
}

/* The code point of a UTF-8 character. */
static uint32_t code_point(const unsigned char *character, size_t length)
{
    static const unsigned char first_bits[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t code = character[0] & first_bits[length];

    for (size_t i = 1; i < length; i++)
        code = code << 6 | (character[i] & 0x3f);
    return code;
}

/* Characters that affect more than their own place in a line. Control characters: those of ISO 8859 have two bytes
 * in UTF-8 (U+0080 to U+009F), and terminals obey them too. Line separators. Marks that change the text direction,
 * and invisible characters, which make one name look like another (Unicode: Default_Ignorable_Code_Point). */
static bool is_control(const unsigned char *character, size_t length)
{
    static const uint32_t ranges[][2] = {
        {0, 0x1f},        {0x7f, 0x9f},       {0xad, 0xad},       {0x34f, 0x34f},     {0x61c, 0x61c},
        {0x115f, 0x1160}, {0x17b4, 0x17b5},   {0x180b, 0x180f},   {0x200b, 0x200f},   {0x2028, 0x202e},
        {0x2060, 0x206f}, {0x3164, 0x3164},   {0xfe00, 0xfe0f},   {0xfeff, 0xfeff},   {0xffa0, 0xffa0},
        {0xfff0, 0xfffb}, {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0xe0000, 0xe0fff},
    };
    uint32_t code = code_point(character, length);

    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (code >= ranges[i][0] && code <= ranges[i][1])
            return true;
    return false;
}

/* The letter for a control character in C and JSON, or 0. */
static char letter_of(unsigned char control)
{
    return control == '\n' ? 'n' : control == '\t' ? 't' : control == '\r' ? 'r' : '\0';
}

void put_printable(struct text *text, const char *bytes, size_t size, const char *also)
{
    const unsigned char *next = (const unsigned char *)bytes;
    const unsigned char *end = next + strnlen(bytes, size);

    while (next < end) {
        size_t length = utf8_character(next, (size_t)(end - next));

        if (length == 1 && strchr(also, *next) != NULL) {
            put_format(text, "\\%c", *next);
        } else if (length == 1 && letter_of(*next) != '\0') {
            put_format(text, "\\%c", letter_of(*next));
        } else if (length == 0 || is_control(next, length)) {
            length = length == 0 ? 1 : length;
            for (size_t i = 0; i < length; i++)
                put_format(text, "\\x%02x", next[i]);
        } else {
            put_bytes(text, (const char *)next, length);
        }
        next += length;
    }
}

void put_json(struct text *text, const char *bytes, size_t size)
{
    const unsigned char *next = (const unsigned char *)bytes;
    const unsigned char *end = next + strnlen(bytes, size);

    put(text, "\"");
    while (next < end) {
        size_t length = utf8_character(next, (size_t)(end - next));

        if (length == 0) {
            put_format(text, "\\\\x%02x", *next);
            length = 1;
        } else if (*next == '"' || *next == '\\') {
            put_format(text, "\\%c", *next);
        } else if (letter_of(*next) != '\0') {
            put_format(text, "\\%c", letter_of(*next));
        } else if (is_control(next, length)) {
            uint32_t code = code_point(next, length);

            if (code > 0xffff) {
                put_format(text, "\\u%04x", 0xd800 + ((code - 0x10000) >> 10));
                code = 0xdc00 + (code & 0x3ff);
            }
            put_format(text, "\\u%04x", code);
        } else {
            put_bytes(text, (const char *)next, length);
        }
        next += length;
    }
    put(text, "\"");
}

/* ---- Time --------------------------------------------------------------------------------------------------- */

enum { NS_PER_S = 1000000000, NS_PER_US = 1000 };

static struct tm utc(uint64_t time_ns)
{
    time_t seconds = (time_t)(time_ns / NS_PER_S);
    struct tm time;

    gmtime_r(&seconds, &time);
    return time;
}

void put_time(struct text *text, uint64_t time_ns)
{
    struct tm time = utc(time_ns);

    put_format(text, "%04d-%02d-%02dT%02d:%02d:%02d.%06uZ", time.tm_year + 1900, time.tm_mon + 1, time.tm_mday,
               time.tm_hour, time.tm_min, time.tm_sec, (unsigned)(time_ns % NS_PER_S / NS_PER_US));
}

void put_time_of_day(struct text *text, uint64_t time_ns)
{
    struct tm time = utc(time_ns);

    put_format(text, "%02d:%02d:%02d", time.tm_hour, time.tm_min, time.tm_sec);
}

uint64_t wall_clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

int64_t monotonic_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}
