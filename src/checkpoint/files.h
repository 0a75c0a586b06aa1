/* Internal to checkpoint/: names, manifest, durability. */
#ifndef PL_CHECKPOINT_FILES_H
#define PL_CHECKPOINT_FILES_H

#include "checkpoint/checkpoint.h"

#define MODEL_FILE "model.h5"
#define MANIFEST_FILE "manifest.json"
#define PARTS_DIR "parts"

pl_status pl_checkpoint_sync_path(const char *path);     /* fsync of a file or directory */
pl_status pl_checkpoint_write_text(const char *path, const char *text); /* written and synced */
pl_status pl_manifest_write(const char *dir, int parts); /* of dir/model.h5 and dir/parts/ */
char *pl_checkpoint_part_name(const char *parts, int rank); /* parts/part-00003.h5 */
/* NULL when the checkpoint is whole, otherwise what is wrong (static text). */
const char *pl_manifest_check(const char *dir);
/* Steps of the checkpoints in dir, ascending. Owner: the caller. */
pl_status pl_checkpoint_list(const char *dir, int64_t **steps, int *n);
char *pl_checkpoint_name(const char *dir, int64_t step); /* dir/step-00001200 */
pl_status pl_checkpoint_open_model(const char *path, struct pl_h5 **f); /* load.c: of a directory, a checkpoint, or the file itself */
void pl_checkpoint_remove(const char *path);             /* a checkpoint directory, as far as it goes */
void pl_checkpoint_remove_old_parts(const char *dir);     /* parts in it that have become no checkpoint's */
void pl_checkpoint_remove_parts(const char *path);       /* a directory of parts, likewise */
/* Of the checkpoints up to step `now` all but the newest `keep` and `best` go. */
void pl_checkpoint_retain(const char *dir, int64_t keep, int64_t now, int64_t best);

#endif
