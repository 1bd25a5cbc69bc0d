/* The format of a log line: columns, or a JSON object. */
#ifndef RECORD_H
#define RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "failure.h"
#include "tcpevent.h"
#include "text.h"

enum {
    RECORD_NOTICE_SIZE = 2048, /* of a notice's text; a byte may become six */
    RECORD_SIZE = 6 * RECORD_NOTICE_SIZE + 256,
};

/* Each puts a whole line of at most RECORD_SIZE bytes. */
void put_state_record(struct text *text, const struct tcpevent_event *event, bool json);
void put_failure_record(struct text *text, const struct failure *failure, bool json);
void put_notice_record(struct text *text, uint64_t time_ns, bool warning, const char *notice, bool json);

#endif
