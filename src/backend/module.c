/* module: opens the cuda backend's module on first use: in PACELINE_MODULE_PATH where that is set, else beside the program or
 * in the folder that it is installed to. It stays open. It calls the program's own pl_ functions, so both must be of one build:
 * a module of another is refused. */
#include "backend/module.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_OF(name) TEXT(name)
#define TEXT(name) #name
#define FILE_NAME "paceline_cuda.so"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const struct pl_module *module;
static char *reason; /* why there is none; stays */

/* The folder of the running program. */
static bool own_folder(char *folder, size_t bytes)
{
    ssize_t n = readlink("/proc/self/exe", folder, bytes - 1);
    folder[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(folder, '/');
    if (slash)
        *slash = '\0';
    return slash != NULL;
}

/* The folder of the library that this is in, where it is not in the program. */
static bool library_folder(char *folder, size_t bytes)
{
    Dl_info info;
    char *slash = dladdr(&once, &info) && info.dli_fname ? strrchr(info.dli_fname, '/') : NULL;
    return slash && (size_t)snprintf(folder, bytes, "%.*s", (int)(slash - info.dli_fname), info.dli_fname) < bytes;
}

/* The first of the places where there is such a file. Owner: the caller. */
static char *find(void)
{
    const char *given = getenv("PACELINE_MODULE_PATH");
    char folder[4096];
    if (given && *given) {
        char *path = pl_strdupf("%s/" FILE_NAME, given);
        if (!path || access(path, F_OK) == 0)
            return path;
        reason = pl_strdupf("no module %s (PACELINE_MODULE_PATH)", path);
        pl_free(path);
        return NULL;
    }
    static const char *const beside[] = {"", "/" PL_MODULE_FOLDER};
    for (int i = 0; i < 2 && own_folder(folder, sizeof folder); i++) {
        char *path = pl_strdupf("%s%s/" FILE_NAME, folder, beside[i]);
        if (path && access(path, F_OK) == 0)
            return path;
        pl_free(path);
    }
    if (library_folder(folder, sizeof folder)) {
        char *path = pl_strdupf("%s/paceline/" FILE_NAME, folder);
        if (path && access(path, F_OK) == 0)
            return path;
        pl_free(path);
    }
    reason = pl_strdupf("not built (target paceline_cuda) or not installed: no " FILE_NAME " beside the program or in " PL_MODULE_FOLDER " from there");
    return NULL;
}

static bool fits(const struct pl_module *m)
{
    const struct pl_module own = {PL_MODULE_HEAD};
    return m->number == own.number && strncmp(m->version, own.version, sizeof own.version) == 0 && m->op_bytes == own.op_bytes &&
           m->io_bytes == own.io_bytes && m->table_bytes == own.table_bytes && m->options_bytes == own.options_bytes;
}

static void open_module(void)
{
    char *path = find();
    if (!path)
        return;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const struct pl_module *m = library ? dlsym(library, TEXT_OF(PL_MODULE_CUDA)) : NULL;
    if (!library)
        reason = pl_strdupf("cannot open %s: %s", path, dlerror());
    else if (!m)
        reason = pl_strdupf("%s is no module of paceline: %s", path, dlerror());
    else if (!fits(m))
        reason = pl_strdupf("%s is of another build (%.28s, contract %u) than this program (" PL_VERSION ", contract %u)", path, m->version,
                            m->number, PL_MODULE_NUMBER);
    else
        module = m;
    pl_free(path);
}

const struct pl_module *pl_module_cuda(const char **why)
{
    pthread_once(&once, open_module);
    *why = reason ? reason : "no memory to open its module";
    return module;
}
