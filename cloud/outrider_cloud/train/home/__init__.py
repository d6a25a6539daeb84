"""The bundled pair's own texts: smart-home chats, their houses and manners, and what is asked of the pair."""
